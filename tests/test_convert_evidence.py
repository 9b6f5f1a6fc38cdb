"""Running statistics as witnesses: nets whose statistics were gathered by running one graph tell which it was."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from convert_tools import random_state_dict, run_convert, small_architecture

from convert.layouts import LAYOUTS
from convert.select import find_net


def gathered(layout: str, num_classes: int = 10, **changes: object) -> dict[str, torch.Tensor]:
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
def test_the_stem_is_read_from_the_statistics_whatever_the_class_count(truth: str, stem: str, classes: int) -> None:
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
