"""Running statistics as witnesses: nets whose statistics were gathered by running one graph tell which it was."""

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convert_tools import random_state_dict, run_convert, small_architecture

from convert.contents.select import find_net
from convert.evidence.choices import Stem
from convert.evidence.images import settle_input
from convert.layouts import LAYOUTS


def gathered(layout: str, num_classes: int = 10, **changes: Any) -> dict[str, torch.Tensor]:
    """A small net with random weights, whose running statistics are those of blurred noise in train mode."""
    architecture = dataclasses.replace(small_architecture(layout, num_classes), pool_size=0, **changes)
    net = LAYOUTS[layout].build_reference(architecture)
    net.load_state_dict(random_state_dict(layout, architecture))
    net.train()
    side = 224 if layout == "pytorchcv_b" else 64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(40):  # of the random statistics 0.9**40, one part in 70, is left
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


def test_the_report_of_a_conversion_says_what_the_statistics_say(tmp_path, capsys) -> None:
    torch.save(gathered("torchvision"), tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt")
    assert outcome.code == 0
    (line,) = (line for line in outcome.out.splitlines() if line.startswith("stem "))
    assert "imagenet (stride 2 and a max-pool), as its running statistics say: its means lie at " in line


@pytest.mark.parametrize(("slope", "activation"), [(0.0, "ReLU"), (0.1, "LeakyReLU of slope 0.1")])
def test_the_activation_is_read_from_the_statistics(slope: float, activation: str) -> None:
    net = find_net(gathered("nanodet", 0, negative_slope=slope))
    assert net.architecture.negative_slope == slope
    assert note_on("rectifier", net.notes).startswith(f"rectifier: {activation}, as its running statistics say")


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
    (note,) = (note for note in net.notes if note.startswith(("stem: ", "rectifier: ", "shuffle: ")))
    assert "assumed" in note
    assert "the tensors cannot tell, nor do its running statistics" in note


def of_photographs(layout: str, scale: float, offset: float, *, bgr: bool) -> dict[str, torch.Tensor]:
    """A small net with random weights, whose statistics are those of tiles of a photograph in warm light."""
    from sklearn.datasets import load_sample_image

    photograph = torch.tensor(load_sample_image("china.jpg")[:384, :640] / 255, dtype=torch.float32)
    photograph = photograph / photograph.mean((0, 1)) * torch.tensor([0.55, 0.51, 0.45])
    tiles = photograph.unfold(0, 64, 64).unfold(1, 64, 64).reshape(-1, 3, 64, 64)  # [60, red green blue, h, w]
    images = ((tiles.flip(1) if bgr else tiles) - offset) * scale
    net = LAYOUTS[layout].build_reference(small_architecture(layout))
    net.load_state_dict(random_state_dict(layout, small_architecture(layout)))
    (stem,) = (part for part in LAYOUTS[layout].parts_of(small_architecture(layout)) if part.flax == "stem")
    conv, bn = net.get_submodule(stem.conv), net.get_submodule(stem.bn).train()
    with torch.no_grad():
        for _ in range(100):
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


def test_a_fresh_stem_tells_nothing_of_the_images() -> None:
    architecture = small_architecture("seed")
    assert settle_input(LAYOUTS["seed"], architecture, LAYOUTS["seed"].build_reference(architecture).state_dict()) == (
        [],
        {},
    )
