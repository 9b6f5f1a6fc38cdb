"""Running statistics as witnesses: nets whose statistics were gathered by running one graph tell which it was."""

import dataclasses
import functools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from convert_tools import prove_nothing, random_state_dict, run_convert, small_architecture

import flax_shufflenet as fs
from benchmarks.graph_fit import CHANGES
from convert.across import family_of
from convert.contents.select import find_net
from convert.evidence.choices import ACTIVATION, STEMS, Stem
from convert.evidence.graph import Fit, note_on_graph, weigh_graph
from convert.evidence.images import InputEvidence, settle_input, weigh_input
from convert.evidence.statistics import AFTER_A_SHUFFLE, Evidence, natural_images, weigh
from convert.layouts import LAYOUTS
from convert.mapping import to_tensors
from flax_shufflenet.weights import flat_arrays


@functools.cache
def gathered(layout: str, num_classes: int = 10, **changes: Any) -> dict[str, torch.Tensor]:
    """A small net with random weights, whose running statistics are those of blurred noise in train mode."""
    architecture = small_architecture(layout, num_classes, pool_size=0, **changes)
    net = LAYOUTS[layout].build_reference(architecture)
    net.load_state_dict(random_state_dict(layout, architecture))
    return run_on_noise(net, 224 if layout == "pytorchcv_b" else 64)


def run_on_noise(net: torch.nn.Module, side: int) -> dict[str, torch.Tensor]:
    """Its state after 20 batches, whose plain average is as exact as the usual one of many, in which the weight of a
    batch falls by a tenth with each that follows."""
    for module in net.train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain average
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(20):
            net(F.interpolate(torch.randn(2, 3, side // 4, side // 4, generator=generator), side, mode="bilinear"))
    return net.state_dict()


def note_on(choice: str, notes: tuple[str, ...]) -> str:
    (note,) = (note for note in notes if note.startswith(f"{choice}: "))
    return note


@pytest.mark.parametrize(("truth", "stem", "classes"), [("torchvision", "imagenet", 10), ("chenyaofo", "cifar", 1000)])
def test_the_stem_is_read_from_the_statistics_whatever_the_class_count(truth: str, stem: Stem, classes: int) -> None:
    tensors = gathered(truth, classes)
    net = find_net(tensors)
    assert net.layout.name == truth
    assert f"stem: {stem}" in note_on("stem", net.notes)
    assert "as its running statistics say" in note_on("stem", net.notes)
    assert "its running statistics agree" in note_on("stem", find_net(tensors, stem=stem).notes)


def test_a_stem_that_the_statistics_speak_against_is_taken_with_a_warning() -> None:
    net = find_net(gathered("torchvision"), stem="cifar")
    assert net.layout.name == "chenyaofo"
    note = note_on("stem", net.notes)
    assert "as given by --stem, but its running statistics speak against it" in note
    assert "--stem imagenet if it is low" in note


@pytest.mark.parametrize(
    ("stem", "classes", "taken"),
    [("strided", 0, "strided"), ("strided", 10, "cifar"), ("pooled", 10, "imagenet"), ("cifar", 0, "strided")],
)
def test_the_statistics_tell_the_max_pool_and_the_stride_is_said_to_be_assumed(
    stem: Stem, classes: int, taken: Stem
) -> None:
    stride, pool = STEMS[stem]
    tensors = gathered("torchvision", classes, stem_stride=stride, stem_pool=pool)
    net = find_net(tensors)
    assert (net.architecture.stem_stride, net.architecture.stem_pool) == STEMS[taken]
    other = {"cifar": "strided", "strided": "cifar", "imagenet": "pooled"}[taken]
    assert f"not the stride{', which is assumed' * (taken == 'strided')}" in note_on("stem", net.notes)
    assert f"--stem {other} for stride" in note_on("stem", net.notes)
    given = find_net(tensors, stem=stem)
    assert (given.architecture.stem_stride, given.architecture.stem_pool) == (stride, pool)
    assert "as given by --stem; its running statistics agree" in note_on("stem", given.notes)


def test_a_pose_nets_strided_stem_under_nanodets_names_is_seen() -> None:
    net = find_net(gathered("nanodet", 0, stem_stride=2, stem_pool=False))
    assert note_on("stem", net.notes).startswith("stem: strided (stride 2, no max-pool), as its running statistics say")
    assert family_of(net.architecture) == "nanodet"


def test_a_strided_stem_goes_to_flax_and_back(tmp_path, capsys) -> None:
    tensors = gathered("torchvision", 10, stem_stride=2, stem_pool=False, stage_blocks=(1, 0, 0))
    torch.save(tensors, tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt", "--stem", "strided")
    assert outcome.code == 0
    assert "strided (stride 2, no max-pool), as given by --stem; its running statistics agree" in outcome.out
    outcome = run_convert(capsys, tmp_path / "net.safetensors", "-o", tmp_path / "back.pt")
    assert outcome.code == 0
    assert "on that layout's module set net.maxpool = nn.Identity()" in outcome.out
    back = torch.load(tmp_path / "back.pt")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_statistics_of_another_graph_are_said_to_fit_neither() -> None:
    architecture = small_architecture("torchvision", 10)
    tensors = random_state_dict("torchvision", architecture)
    assert "fit neither" in note_on("stem", find_net(tensors).notes)


def test_the_report_of_a_conversion_says_what_the_statistics_say(tmp_path, capsys, monkeypatch) -> None:
    prove_nothing(monkeypatch)
    torch.save(gathered("torchvision"), tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt")
    assert outcome.code == 0
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("stem "))
    assert "imagenet (stride 2 and a max-pool), as its running statistics say: its means lie at " in line
    assert "graph     its running statistics fit: the means of 7 1x1 convolutions are explained to " in outcome.out


@pytest.mark.parametrize(("slope", "activation"), [(0.0, "ReLU"), (0.1, "LeakyReLU of slope 0.1")])
def test_the_activation_is_read_from_the_statistics(slope: float, activation: str) -> None:
    net = find_net(gathered("nanodet", 0, negative_slope=slope))
    assert net.architecture.negative_slope == slope
    assert note_on("rectifier", net.notes).startswith(f"rectifier: {activation}, as its running statistics say")


@pytest.mark.parametrize("truth", [0, 1])
def test_the_means_lie_where_their_own_graph_puts_them_and_others_nowhere(truth: int) -> None:
    slope = (0.0, 0.1)[truth]
    tensors = gathered("nanodet", 0, negative_slope=slope)
    first, second = ACTIVATION.hypotheses(small_architecture("nanodet", 0)).values()
    found = weigh(first, second, tensors, AFTER_A_SHUFFLE)
    assert found is not None
    assert found.place == pytest.approx(truth, abs=0.1)
    assert 0.99 < found.explained <= 1
    mean = "stage2.1.branch2.1.running_mean"
    wrong = weigh(first, second, {**tensors, mean: tensors[mean].flip(0)}, AFTER_A_SHUFFLE)
    assert wrong is not None
    assert wrong.explained < 0.5
    assert weigh(first, second, {**tensors, mean: torch.zeros_like(tensors[mean])}, AFTER_A_SHUFFLE) is None


@pytest.mark.parametrize("shuffle", ["after", "reverse"])
def test_the_shuffle_is_read_from_the_statistics(shuffle: str) -> None:
    net = find_net(gathered("pytorchcv_b", shuffle=shuffle))
    assert net.architecture.shuffle == shuffle
    assert "as its running statistics say" in note_on("shuffle", net.notes)


@pytest.mark.parametrize("layout", ["torchvision", "nanodet", "pytorchcv_b"])
@pytest.mark.parametrize("statistics", ["fresh", "random", "reset"])
def test_statistics_that_no_graph_gathered_tell_nothing(layout: str, statistics: str) -> None:
    architecture = small_architecture(layout, 0 if layout == "nanodet" else 10)
    tensors = random_state_dict(layout, architecture)
    if statistics == "fresh":
        torch.manual_seed(0)
        tensors = dict(LAYOUTS[layout].build_reference(architecture).state_dict())
    elif statistics == "reset":
        for name in tensors:
            if name.endswith(("running_mean", "running_var")):
                tensors[name] = torch.full_like(tensors[name], float(name.endswith("var")))
    net = find_net(tensors)
    notes = [note for note in net.notes if note.startswith(("stem: ", "rectifier: ", "shuffle: "))]
    assert len(notes) == (2 if layout == "nanodet" else 1)
    for note in notes:
        assert "assumed" in note
        assert "the tensors cannot tell, nor do its running statistics" in note


def test_the_noise_has_the_spectrum_and_the_colours_of_photographs() -> None:
    images = natural_images(16, 64)
    np.testing.assert_allclose((images.mean((0, 1, 2)), images.std((0, 1, 2))), [[0] * 3, [1] * 3], atol=1e-4)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    amplitude = np.abs(np.fft.fft2(images, axes=(1, 2))).mean((0, 3))
    slope, _ = np.polyfit(np.log(frequency[frequency > 0]), np.log(amplitude[frequency > 0]), 1)
    assert slope == pytest.approx(-1, abs=0.01)
    red_green, red_blue, green_blue = np.corrcoef(images.reshape(-1, 3).T)[[0, 0, 1], [1, 2, 2]]
    # Of variances 1 for light, 1/16 for blue against yellow, and 1/100 for green against magenta.
    assert (red_green, green_blue, red_blue) == pytest.approx((0.941, 0.941, 0.883), abs=0.005)


@pytest.mark.parametrize(
    ("place", "explained", "says"),
    [(-5.0, 0.9, 0), (0.03, 0.9, 0), (0.04, 1.0, None), (0.19, 1.0, None), (0.2, 0.9, 1), (5.0, 0.9, 1),
     (0.0, 0.89, None), (1.0, 0.89, None), (1.0, float("nan"), None)],
)  # fmt: skip
def test_what_lies_between_two_graphs_or_on_no_line_is_not_told(place: float, explained: float, says: int) -> None:
    assert Evidence(place, explained, (0.03, 0.2)).says == says


LIGHT = (0.55, 0.51, 0.45)


@functools.cache
def of_photographs(layout: str, scale: float, offset: float, *, bgr: bool) -> dict[str, torch.Tensor]:
    """A small net with random weights, whose statistics are those of tiles of a photograph in warm light."""
    from sklearn.datasets import load_sample_image

    photograph = torch.tensor(load_sample_image("china.jpg")[:384, :640] / 255, dtype=torch.float32)
    photograph = photograph / photograph.mean((0, 1)) * torch.tensor(LIGHT)
    tiles = photograph.unfold(0, 64, 64).unfold(1, 64, 64).reshape(-1, 3, 64, 64)  # [60, red green blue, h, w]
    images = ((tiles.flip(1) if bgr else tiles) - offset) * scale
    net = LAYOUTS[layout].build_reference(small_architecture(layout))
    net.load_state_dict(random_state_dict(layout, small_architecture(layout)))
    (stem,) = (part for part in LAYOUTS[layout].parts_of(small_architecture(layout)) if part.flax == "stem")
    conv, bn = net.get_submodule(stem.conv), net.get_submodule(stem.bn).train()
    vars(bn)["momentum"] = 1.0  # nothing of the random statistics is left
    with torch.no_grad():
        bn(conv(images))
    return net.state_dict()


@pytest.mark.parametrize(
    ("layout", "scale", "offset", "bgr", "note", "metadata"),
    [
        ("seed", 1, 0, False, "values from 0 to 1 and red first, as its running statistics say", ([0.0, 1.0], "rgb")),
        ("seed", 255, 0, True, "values from 0 to 255 and blue first, as its", ([0.0, 1 / 255], "bgr")),
        ("seed", 4, 0.5, False, "normalised images, as its", None),
        ("megvii", 255, 0, True, "values from 0 to 255 and blue first, as its", None),  # as the authors' nets do
        ("megvii", 255, 0, False, "values from 0 to 255 and red first, as its", ([0.0, 1 / 255], "rgb")),
        ("megvii", 4, 0.5, True, "red first is assumed", ([0.485, 0.229], "rgb")),
    ],
)
def test_the_images_are_read_from_the_stems_statistics(
    layout: str, scale: float, offset: float, bgr: bool, note: str, metadata: tuple | None
) -> None:
    tensors = of_photographs(layout, scale, offset, bgr=bgr)
    measured = weigh_input(LAYOUTS[layout], find_net(tensors).architecture, tensors)
    means = [(mean - offset) * scale for mean in (LIGHT[::-1] if bgr else LIGHT)]
    assert measured is not None
    assert measured.mean == pytest.approx(means, abs=0.05 * scale)
    assert measured.deviation == pytest.approx(0.25 * scale, rel=0.3)
    (found,), expected = settle_input(LAYOUTS[layout], find_net(tensors).architecture, tensors)
    assert note in found
    if metadata is None:
        assert expected == {}
        assert "unusual" not in found
    else:
        (mean, std), order = metadata
        assert (json.loads(expected["mean"])[0], json.loads(expected["std"])[0]) == (mean, std)
        assert json.loads(expected["channel_order"]) == order
        assert "unusual for this layout" in found


@pytest.mark.parametrize(
    ("mean", "deviation", "spread", "explained", "scale", "order"),
    [
        ((0.1, -0.4, 0.4), 1.0, 0.6, 0.0, "normalised", None),
        ((0.1, -0.4, 0.4), 1.0, 0.61, 0.0, None, None),
        ((0.1, 0.0, 0.1), 0.31, 0.6, 0.0, "normalised", None),
        ((0.1, 0.0, 0.1), 0.29, 0.6, 1.0, None, None),
        ((1.0, 0.0, 1.0), 2.9, 0.6, 0.0, "normalised", None),
        ((1.0, 0.0, 1.0), 3.1, 0.6, 1.0, None, None),
        ((0.1, 0.1, 0.51), 1.0, 0.6, 1.0, None, None),
        ((0.55, 0.5, 0.45), 0.25, 1.0, 0.95, "0 to 1", "rgb"),
        ((0.45, 0.5, 0.55), 0.25, 1.0, 0.95, "0 to 1", "bgr"),
        ((0.5, 0.5, 0.476), 0.25, 1.0, 1.0, "0 to 1", None),
        ((0.5, 0.5, 0.474), 0.25, 1.0, 1.0, "0 to 1", "rgb"),
        ((0.55, 0.5, 0.45), 0.25, 1.01, 1.0, None, None),
        ((0.55, 0.5, 0.45), 0.25, 1.0, 0.94, None, None),
        ((0.5, 0.14, 0.5), 0.25, 1.0, 1.0, None, None),
        ((0.5, 0.16, 0.5), 0.25, 1.0, 1.0, "0 to 1", None),
        ((0.55, 0.5, 0.45), 0.59, 1.0, 1.0, "0 to 1", "rgb"),
        ((0.55, 0.5, 0.45), 0.61, 1.0, 1.0, None, None),
        ((0.99, 0.9, 0.8), 0.5, 1.0, 1.0, "0 to 1", "rgb"),
        ((1.01, 0.9, 0.8), 0.5, 1.0, 1.0, None, None),
        ((110.0, 120.0, 130.0), 60.0, 1.0, 1.0, "0 to 255", "bgr"),
        ((110.0, 120.0, 130.0), 8.1, 1.0, 1.0, "0 to 255", "bgr"),
        ((110.0, 120.0, 130.0), 7.9, 1.0, 1.0, None, None),
        ((254.5, 220.0, 200.0), 60.0, 1.0, 1.0, "0 to 255", "rgb"),
        ((255.5, 220.0, 200.0), 60.0, 1.0, 1.0, None, None),
    ],
)  # fmt: skip
def test_images_are_told_within_limits_only(mean, deviation, spread, explained, scale, order) -> None:
    found = InputEvidence(mean, deviation, spread, explained)
    assert (found.scale, found.order) == (scale, order)


def test_a_convolutions_bias_is_no_part_of_the_images_mean() -> None:
    tensors = of_photographs("seed", 1, 0, bgr=False)
    architecture = find_net(tensors).architecture
    plain = weigh_input(LAYOUTS["seed"], architecture, tensors)
    bias = torch.linspace(-1, 1, len(tensors["conv1.weight"]))
    biased = {**tensors, "conv1.bias": bias, "bn1.running_mean": tensors["bn1.running_mean"] + bias}
    found = weigh_input(LAYOUTS["seed"], dataclasses.replace(architecture, conv_bias=True), biased)
    assert plain is not None
    assert found is not None
    assert found.mean == pytest.approx(plain.mean, rel=1e-5)
    assert found.explained == pytest.approx(plain.explained, rel=1e-5)


def test_channels_that_do_not_vary_have_no_say_and_six_others_are_enough() -> None:
    tensors = of_photographs("seed", 1, 0, bgr=False)
    architecture = find_net(tensors).architecture
    for varying, scale in ((6, "0 to 1"), (5, None)):
        var = tensors["bn1.running_var"].clone()
        var[varying:] = 0
        found = weigh_input(LAYOUTS["seed"], architecture, {**tensors, "bn1.running_var": var})
        assert (found and found.scale) == scale
    assert weigh_input(LAYOUTS["seed"], architecture, {**tensors, "bn1.running_mean": torch.zeros(8)}) is None


def test_a_fresh_stem_tells_nothing_of_the_images() -> None:
    architecture = small_architecture("seed")
    assert settle_input(LAYOUTS["seed"], architecture, LAYOUTS["seed"].build_reference(architecture).state_dict()) == (
        [],
        {},
    )


# --- does the graph fit

OTHER_GRAPHS: list[dict[str, Any]] = [{"shuffle": "reverse"}, {"down_relu": False}]


@pytest.mark.parametrize("layout", ["torchvision", "weiaicunzai", "nanodet", "fastestdet", "openpifpaf"])
def test_statistics_fit_the_graph_that_gathered_them_and_no_other(layout: str) -> None:
    architecture = small_architecture(layout, 10)
    tensors = gathered(layout)
    fit = weigh_graph(LAYOUTS[layout], architecture, tensors)
    assert fit is not None
    assert fit.is_good
    assert fit.tenth > 0.99
    assert fit.convolutions == 4 + 2 + bool(architecture.last_width)  # basic blocks, down blocks behind the first
    for changes in OTHER_GRAPHS:
        other = weigh_graph(LAYOUTS[layout], dataclasses.replace(architecture, **changes), tensors)
        assert other is not None
        assert not other.is_good


def test_another_activation_shuffle_or_half_is_said_not_to_fit() -> None:
    """Of nets under torchvision's names, which its graph would take without a word."""

    def changed(graph: str) -> dict[str, torch.Tensor]:
        net = LAYOUTS["chenyaofo"].build_reference(small_architecture("chenyaofo", 10))
        net.load_state_dict(random_state_dict("chenyaofo", small_architecture("chenyaofo", 10)))
        CHANGES[graph](net)
        return run_on_noise(net, 64)

    unchanged = changed("as it is")
    assert "graph: its running statistics fit: the means of 7 1x1" in note_on_graph(fit_of(unchanged))[0]
    for graph in ("Hardswish for ReLU", "SiLU for ReLU", "no shuffle", "the other half passes"):
        (note,) = note_on_graph(fit_of(changed(graph)))
        assert "do NOT fit" in note


def fit_of(tensors: dict[str, torch.Tensor]) -> Fit | None:
    return weigh_graph(LAYOUTS["chenyaofo"], small_architecture("chenyaofo", 10), tensors)


def test_a_net_that_was_trained_fits() -> None:
    model = fs.pretrained("shufflenet_0.5_cifar10")
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    fit = weigh_graph(LAYOUTS["seed"], model.architecture, to_tensors(LAYOUTS["seed"], model.architecture, arrays))
    assert fit is not None
    assert fit.is_good


def test_a_fresh_net_has_no_graph_to_tell() -> None:
    fresh = LAYOUTS["chenyaofo"].build_reference(small_architecture("chenyaofo", 10)).state_dict()
    assert note_on_graph(fit_of(fresh)) == []
    infinite = {name: tensor * math.inf for name, tensor in fresh.items()}
    assert note_on_graph(fit_of(infinite)) == []
