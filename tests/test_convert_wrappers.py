"""Behind whatever wrapper and prefix a trainer left it, the net is found and its tensors are the original ones."""

import argparse
import datetime
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import assert_same, legacy, saved, small_state_dict

import convert
from convert.contents.select import find_net
from convert.evidence.choices import Stem
from convert.files.read import read

Tensors = dict[str, torch.Tensor]


def prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def other(layout: str) -> Tensors:
    """Another net's weights, in the same names and shapes."""
    return {n: t + 1 if t.is_floating_point() else t for n, t in small_state_dict(layout).items()}


def momentum(tensors: Tensors) -> dict[str, object]:
    """What torch.optim.SGD keeps."""
    state = {number: {"momentum_buffer": torch.zeros_like(tensor)} for number, tensor in enumerate(tensors.values())}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": list(state), "betas": (0.9, 0.999)}]}


WRAPPERS: dict[str, Callable[[Tensors], object]] = {
    "bare": lambda t: t,
    "ordered, with torch's metadata": lambda t: _with_metadata(t),
    "kuangliu's": lambda t: {"net": t, "acc": 93.7, "epoch": 199},
    "imagenet example's": lambda t: {
        "epoch": 90, "arch": "shufflenet", "state_dict": t, "best_acc1": torch.tensor(61.5), "optimizer": momentum(t),
    },
    "a tensor beside it": lambda t: {"best_acc": torch.tensor(93.7), "state_dict": t},
    "torchvision's trainer": lambda t: {
        "model": t,
        "optimizer": momentum(t),
        "lr_scheduler": {"last_epoch": 3, "_step_count": 4, "milestones": defaultdict(int, {3: 1})},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.5, device=torch.device("cpu"), output_dir=Path("runs"), mean=(0.485, 0.456)),
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed(other("kuangliu"), "module.")},
    },
    "the tutorial's": lambda t: {"epoch": 5, "model_state_dict": t, "optimizer_state_dict": momentum(t), "loss": 0.3},
    "numpy's numbers": lambda t: {
        "net": t, "acc": np.float64(93.7), "epoch": np.int64(3), "best": np.float32(1), "curve": np.arange(4.0),
        "when": datetime.datetime(2020, 1, 2), "dtype": np.dtype("float32"), "seen": {1, 2}, "z": 1j, "raw": b"abc",
    },
    "nested": lambda t: {"runs": {"last": {"weights": {"model": t}}}},
    "a list": lambda t: [3, {"lr": 0.1}, t],
    "a tuple": lambda t: (t, momentum(t)),
    "Lightning's": lambda t: {
        "state_dict": prefixed(t, "model."), "pytorch-lightning_version": "2.1.0", "global_step": 9,
        "hyper_parameters": {"lr": 0.1, "classes": ["a", "b"]}, "callbacks": {"best": {"score": torch.tensor(0.9)}},
    },
    "parameters": lambda t: {n: torch.nn.Parameter(v) if v.is_floating_point() else v for n, v in t.items()},
    "under a key that is no text": lambda t: {0: t, (1, 2): "x", None: 3},
}  # fmt: skip


def _with_metadata(tensors: Tensors) -> OrderedDict[str, torch.Tensor]:
    ordered = OrderedDict(tensors)
    vars(ordered)["_metadata"] = OrderedDict({"": {"version": 1}})
    return ordered


@pytest.mark.parametrize("layout", ["kuangliu", "mmpretrain"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper: str, layout: str, tmp_path: Path) -> None:
    tensors = small_state_dict(layout)
    for data in (saved(WRAPPERS[wrapper](tensors)), legacy(WRAPPERS[wrapper](tensors))):
        (tmp_path / "net.pt").write_bytes(data)
        assert_same(find_net(read(tmp_path / "net.pt").content).tensors, tensors)


@pytest.mark.parametrize("layout", ["seed", "chenyaofo", "megvii", "mmpretrain"])
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "base_model.", "backbone.", "0.", "1.", "module._orig_mod.", "model.module.1.",
     "_orig_mod.module.base_model.backbone.0.", "net.net.net."],
)  # fmt: skip
def test_prefixes(prefix: str, layout: str) -> None:
    tensors = small_state_dict(layout)
    for content in (prefixed(tensors, prefix), {"state_dict": prefixed(tensors, prefix), "epoch": 1}):
        net = find_net(content)
        assert_same(net.tensors, tensors)
        assert "head" in str(net.notes) or net.architecture.num_classes == 10


def test_numpy_scalars_under_both_module_names(tmp_path: Path) -> None:
    data = saved({"net": small_state_dict("seed"), "acc": np.float64(1)})
    names = (b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    found = [name for name in names if name in data]
    assert len(found) == 1
    # The legacy format has no sizes that another name's length would break.
    data = legacy({"net": small_state_dict("seed"), "acc": np.float64(1)})
    for name in names:
        (tmp_path / "net.pt").write_bytes(data.replace(found[0], name))
        assert_same(find_net(read(tmp_path / "net.pt").content).tensors, small_state_dict("seed"))


def test_averages_beside_the_model() -> None:
    model, average = small_state_dict("seed"), other("seed")
    by_wrapper = {"model": model, "model_ema": {"n_averaged": torch.tensor(3), **prefixed(average, "module.")}}
    by_prefix = {"state_dict": {**prefixed(model, "model."), **prefixed(average, "ema_model.module.")}}
    by_name = {"state_dict": model, "state_dict_ema": average}
    for content in (by_wrapper, by_prefix, by_name):
        assert_same(find_net(content).tensors, model)
        assert_same(find_net(content, use_ema=True).tensors, average)
    assert "found at: model_ema.module" in find_net(by_wrapper, use_ema=True).notes
    assert "left out: module.n_averaged" not in str(find_net(by_wrapper, use_ema=True).notes)
    assert_same(find_net({"model_ema": average}).tensors, average)  # nothing else to take
    with pytest.raises(convert.ConvertError, match="--use_ema: there are no averaged weights"):
        find_net({"model": model}, use_ema=True)


def test_words_that_only_contain_ema_are_no_averages() -> None:
    tensors = small_state_dict("seed")
    for word in ("schema", "semantic", "thema_net"):
        assert_same(find_net({word: tensors, "model_ema": other("seed")}).tensors, tensors)


def test_several_nets_in_one_file() -> None:
    one, two = small_state_dict("seed"), small_state_dict("chenyaofo")
    for content in (
        {"student": one, "teacher": two},
        {"state_dict": {**prefixed(one, "student."), **prefixed(two, "teacher.")}},
        {**prefixed(one, "student."), **prefixed(two, "student.teacher.")},
    ):
        with pytest.raises(convert.ConvertError, match="holds 2 nets; choose one with --key: ") as refusal:
            find_net(content)
        places = str(refusal.value).partition("--key: ")[2].split("; ")
        for place, tensors in zip(places, (one, two), strict=True):
            assert_same(find_net(content, key=place).tensors, tensors)
    with pytest.raises(convert.ConvertError, match="no ShuffleNetV2 at --key other; there is one at: student; teacher"):
        find_net({"student": one, "teacher": two}, key="other")
    assert_same(find_net({"last": one, "best": one}).tensors, one)  # the same object twice


def test_a_sequence_with_other_tensors_before_the_net() -> None:
    """A normalisation in front changes what the net is fed, so it is not left out unasked."""
    tensors = small_state_dict("seed")
    content = {"0.mean": torch.zeros(3), "0.std": torch.ones(3), **prefixed(tensors, "1.")}
    with pytest.raises(
        convert.ConvertError, match=r"0.mean belongs to no part .* --key 1 takes the net there without them"
    ):
        find_net(content)
    net = find_net(content, key="1")
    assert_same(net.tensors, tensors)
    assert "left out: 2 tensors beside the net" in net.notes


@pytest.mark.parametrize("classes", [2, 37, 751])
@pytest.mark.parametrize("head", ["class_out", "classifier.1", "head.linear"])
def test_heads_under_other_names(head: str, classes: int) -> None:
    tensors = small_state_dict("chenyaofo", classes)
    renamed = {name.replace("fc.", f"{head}."): tensor for name, tensor in tensors.items()}
    net = find_net(prefixed(renamed, "module."))
    assert net.architecture.num_classes == classes
    assert_same(net.tensors, tensors)
    assert f"head: module.{head}, the one linear layer that fits (module.fc in this layout)" in net.notes


def test_a_head_beside_the_backbone() -> None:
    """nn.Sequential(backbone, nn.Linear(...)), and a module with two attributes."""
    tensors = small_state_dict("seed")
    head = {name: tensors.pop(name) for name in ("classifier.weight", "classifier.bias")}
    for backbone, place in (("0.", "1."), ("backbone.", "fc."), ("module.encoder.", "module.fc.")):
        moved = {name.replace("classifier.", place): tensor for name, tensor in head.items()}
        net = find_net({**prefixed(tensors, backbone), **moved})
        assert_same(net.tensors, {**tensors, **head})


def test_a_head_without_a_bias() -> None:
    tensors = small_state_dict("seed")
    del tensors["classifier.bias"]
    net = find_net(tensors)
    assert not net.architecture.head_bias
    assert_same(net.tensors, tensors)


def test_a_head_of_several_layers_is_refused_and_can_be_left_out() -> None:
    tensors = small_state_dict("torchvision")
    trunk = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    head = {"fc.0.weight": torch.zeros(20, 40), "fc.0.bias": torch.zeros(20),
            "fc.2.weight": torch.zeros(5, 20), "fc.2.bias": torch.zeros(5)}  # fmt: skip
    with pytest.raises(
        convert.ConvertError,
        match=r"head has several layers \(fc\.0; fc\.2\), .* --backbone takes the net without them",
    ):
        find_net({**trunk, **head})
    net = find_net({**trunk, **head}, backbone=True)
    assert_same(net.tensors, trunk)
    assert net.architecture.num_classes == 0
    assert any("left out: 4 tensors" in note and "fc.0.weight" in note for note in net.notes)
    assert "no head: the net returns its pooled features" in net.notes


def test_backbones_without_a_head() -> None:
    for layout, head in (("seed", "classifier."), ("mmpretrain", "head.fc."), ("megvii", "classifier.0.")):
        tensors = {name: t for name, t in small_state_dict(layout).items() if not name.startswith(head)}
        net = find_net(tensors)
        assert net.architecture.num_classes == 0
        assert "no head: the net returns its pooled features" in net.notes
        assert_same(net.tensors, tensors)


def test_a_detectors_backbone() -> None:
    tensors = small_state_dict("torchvision")
    trunk = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    detector = {
        **prefixed(trunk, "backbone.body."),
        **{f"rpn.head.{i}.weight": torch.zeros(4, 8, 1, 1) for i in range(5)},
        "roi_heads.box_predictor.cls_score.weight": torch.zeros(91, 40),
        "roi_heads.box_predictor.bbox_pred.weight": torch.zeros(364, 40),
    }
    with pytest.raises(convert.ConvertError, match="--backbone leaves out what is not the backbone's"):
        find_net({"model": detector})
    net = find_net({"model": detector}, backbone=True, stem="imagenet")
    assert_same(net.tensors, trunk)
    assert any("left out: 7 tensors" in note and "rpn.head.0.weight" in note for note in net.notes)
    assert "found at: model.backbone.body." in [note + "." for note in net.notes]


def test_profilers_counters_are_left_out() -> None:
    tensors = small_state_dict("seed")
    counters = {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)}
    net = find_net({**tensors, **counters})
    assert_same(net.tensors, tensors)
    assert "left out: total_ops; layer1.0.total_params" in net.notes


@pytest.mark.parametrize(
    ("classes", "stem", "layout"),
    [(10, None, "chenyaofo"), (100, None, "chenyaofo"), (1000, None, "torchvision"), (10, "imagenet", "torchvision"),
     (1000, "cifar", "chenyaofo"), (10, "cifar", "chenyaofo"), (1000, "imagenet", "torchvision")],
)  # fmt: skip
def test_the_stem_is_an_option_with_a_stated_default(classes: int, stem: Stem | None, layout: str) -> None:
    net = find_net(small_state_dict("torchvision", classes), stem=stem)
    assert net.layout.name == layout
    (note,) = (note for note in net.notes if note.startswith("stem: "))
    assert ("as given by --stem" in note) == (stem is not None)
    usual = "cifar" if classes < 1000 else "imagenet"
    assert ("the tensors cannot tell" in note) == (stem != usual)
    assert (f"--stem {usual} if it is low" in note) == (stem not in (None, usual))


def test_a_state_dict_in_memory() -> None:
    """Not read from a file: real modules' dictionaries, with what only they can hold."""
    tensors = small_state_dict("seed")
    grown = {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in tensors.items()}
    assert_same(find_net(grown).tensors, tensors)
    content: dict[str, object] = {"model": tensors}
    content["self"] = content
    content["list"] = [content, [content]]
    assert_same(find_net(content).tensors, tensors)
