"""Modules that ``torch.save(net)`` pickled whole: their tensors are taken out, and what their layers say is heeded."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_tools import assert_same, legacy, saved, small_net, small_state_dict, take
from convert_tools import prove_nothing, run_convert, small_architecture
from torch import nn
from torch.nn.utils import prune

from convert.contents.select import Net, find_net
from convert.errors import ConvertError
from convert.layouts import LAYOUTS
from torch_ref.randomise import randomise
from torch_ref.seed import ShuffleBlock

IMAGENET_STEMS = ("torchvision", "nanodet", "yolov5lite", "birder", "pytorchcv", "pytorchcv_b", "fastestdet")


def fresh(layout: str, num_classes: int = 7, **fields: Any) -> nn.Module:
    return randomise(LAYOUTS[layout].build_reference(small_architecture(layout, num_classes, **fields)))


def taken(content: object, tmp_path: Path, **options: Any) -> Net:
    (tmp_path / "net.pt").write_bytes(saved(content))
    return take(tmp_path / "net.pt", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_module_is_its_state_dict(layout: str, tmp_path: Path) -> None:
    net, tensors = small_net(layout), small_state_dict(layout)
    for content in (net, nn.DataParallel(net)):
        (tmp_path / "net.pt").write_bytes(saved(content))
        found = take(tmp_path / "net.pt")
        assert found.layout.name == layout  # chenyaofo's and torchvision's stems are told apart by their strides
        assert found.architecture == small_architecture(layout)
        assert_same(found.tensors, tensors)
        assert any("which is unknown here; nothing of it ran" in note for note in found.notes)


@pytest.mark.parametrize("layout", ["kuangliu", "mmpretrain"])
def test_a_module_is_found_wherever_it_is_and_however_it_was_pickled(layout: str, tmp_path: Path) -> None:
    net = small_net(layout)
    contents = ({"model": net, "epoch": 3}, [net])
    for data in (*map(saved, contents), legacy(net), saved(net, pickle_protocol=4)):
        (tmp_path / "net.pt").write_bytes(data)
        found = take(tmp_path / "net.pt")
        assert (found.layout.name, found.architecture) == (layout, small_architecture(layout))
        assert_same(found.tensors, small_state_dict(layout))
        assert any("which is unknown here; nothing of it ran" in note for note in found.notes)


def test_nothing_is_imported_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that is gone when the file is read, as everybody's is on another machine."""
    prove_nothing(monkeypatch)
    module = types.ModuleType("elsewhere")
    sys.modules["elsewhere"] = module
    net = fresh("kuangliu")
    net.__class__ = vars(module)["Net"] = type("Net", (type(net),), {"__module__": "elsewhere"})
    (tmp_path / "net.pt").write_bytes(saved(net))
    del sys.modules["elsewhere"]
    outcome = run_convert(capsys, tmp_path / "net.pt")
    assert outcome.code == 0, outcome.err
    assert "of class elsewhere.Net, which is unknown here" in outcome.out
    assert "elsewhere" not in sys.modules


def test_yolov5s_checkpoint_in_half_precision(tmp_path: Path) -> None:
    class Detector(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.model = nn.Sequential(*backbone.get_submodule("model").children(), nn.Conv2d(128, 3, 1))

    net = fresh("yolov5lite", 0)
    globals()["Detector"], Detector.__qualname__ = Detector, "Detector"
    checkpoint = {"epoch": 1, "model": Detector(net).half(), "ema": None, "optimizer": None}
    with pytest.raises(ConvertError, match=r"model\.7\.weight belongs to no part"):
        taken(checkpoint, tmp_path)
    found = taken(checkpoint, tmp_path, backbone=True)
    assert found.layout.name == "yolov5lite"
    assert found.architecture.bn_epsilon == 1e-3
    assert "epsilon: 0.001 in all batch normalisations, as the module has it" in found.notes
    assert_same(found.tensors, net.half().state_dict())


def test_buffers_that_are_no_state_are_left_out(tmp_path: Path) -> None:
    net = fresh("seed")
    net.register_buffer("grid", torch.ones(3), persistent=False)
    assert_same(taken(net, tmp_path).tensors, dict(net.state_dict()))


def changed(layout: str, change: Callable[[nn.Module], object]) -> nn.Module:
    net = fresh(layout)
    change(net)
    return net


def set_all(kind: type[nn.Module], **attributes: object) -> Callable[[nn.Module], object]:
    def change(net: nn.Module) -> None:
        for module in net.modules():
            if isinstance(module, kind):
                vars(module).update(attributes)

    return change


def replaced(name: str, module: nn.Module) -> Callable[[nn.Module], object]:
    return lambda net: net.set_submodule(name, module)


def test_an_epsilon_of_its_own_is_heeded(tmp_path: Path) -> None:
    net = changed("torchvision", set_all(nn.BatchNorm2d, eps=1e-3))
    assert taken(net, tmp_path).architecture.bn_epsilon == 1e-3


def test_the_activation_of_a_lone_nanodet_backbone_is_its_own(tmp_path: Path) -> None:
    for slope in (0.1, 0.01, 0.0):
        net = fresh("nanodet", 0, negative_slope=slope)
        found = taken(net, tmp_path)
        assert found.architecture.negative_slope == slope
        assert sum(note.startswith("rectifier: ") for note in found.notes) == 1


def test_pytorchcvs_shuffle_is_told_by_its_class(tmp_path: Path) -> None:
    net = fresh("pytorchcv_b")
    for module in net.modules():
        if isinstance(module, ShuffleBlock):
            module.__class__ = ChannelShuffle2
    found = taken(net, tmp_path)
    assert found.architecture.shuffle == "reverse"
    assert "shuffle: reverse, as the module has it" in found.notes
    for options, layers in (({"shuffle": "after"}, net), ({"activation": "leaky_relu"}, fresh("nanodet"))):
        with pytest.raises(ConvertError, match="the module's own layers say which it is; leave it out"):
            taken(layers, tmp_path, **options)


def test_a_cifar_stem_in_torchvisions_module_is_seen(tmp_path: Path) -> None:
    net = changed("torchvision", replaced("maxpool", nn.Identity()))
    stem = net.get_submodule("conv1.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    found = taken(net, tmp_path)
    assert found.layout.name == "chenyaofo"
    assert "stem: cifar (stride 1), as the module has it" in found.notes
    with pytest.raises(ConvertError, match="--stem imagenet: the module's own first convolution has stride 1"):
        taken(net, tmp_path, stem="imagenet")


def set_stride(net: nn.Module) -> None:
    vars(net.get_submodule("conv1.0")).update(stride=(1, 1))


def test_a_max_pool_behind_a_convolution_of_stride_1_is_seen(tmp_path: Path) -> None:
    found = taken(changed("torchvision", set_stride), tmp_path)
    assert "stem: pooled (stride 1 and a max-pool), as the module has it" in found.notes
    assert (found.architecture.stem_stride, found.architecture.stem_pool) == (1, True)
    with pytest.raises(
        ConvertError, match="--stem cifar: the module's own first convolution has stride 1 and a max-po"
    ):
        taken(changed("torchvision", set_stride), tmp_path, stem="cifar")


def test_whether_a_module_without_a_layer_for_it_pools_is_asked(tmp_path: Path) -> None:
    """A max-pool that is a function in ``forward`` is no layer."""
    net = changed("torchvision", replaced("maxpool", nn.Identity()))
    with pytest.raises(ConvertError, match="--stem imagenet if it does, --stem strided if not"):
        taken(net, tmp_path)
    for stem, pool in (("imagenet", True), ("strided", False)):
        found = taken(net, tmp_path, stem=stem)
        assert (found.architecture.stem_stride, found.architecture.stem_pool) == (2, pool)


@pytest.mark.parametrize(
    ("layout", "change", "reason"),
    [
        ("torchvision", set_all(nn.MaxPool2d, stride=(1, 2)), r"its max-pool maxpool has stride \(1, 2\)"),
        ("torchvision", set_all(nn.MaxPool2d, ceil_mode=True), "has ceil_mode True; nets of this layout have False"),
        ("torchvision", lambda net: vars(net.conv1[0]).update(stride=(3, 3)), "has stride 3, which no layout with"),
        ("megvii", replaced("maxpool", nn.Identity()), "no max-pool is among the module's layers"),
        ("birder", set_all(nn.Conv2d, padding_mode="reflect"), "has padding_mode reflect; nets here have zeros"),
        ("torchvision", replaced("stage2.0.branch2.2", nn.SiLU()), "its activation stage2.0.branch2.2 is SiLU"),
        ("torchvision", replaced("stage2.0.branch2.2", nn.LeakyReLU()), "have to have the same"),
        ("torchvision", replaced("conv1.1", nn.BatchNorm2d(8, eps=0.1)), "1e-05, 0.1 to the variance"),
        ("birder", lambda net: vars(net.body.stage2[1].branch2[1]).update(dilation=(2, 2)), r"has dilation \(2, 2\)"),
        ("pytorchcv", lambda net: vars(net.features.init_block.pool).update(padding=1), "has padding 1"),
    ],
)  # fmt: skip
def test_layers_that_compute_something_else_are_refused(
    layout: str, change: Callable[[nn.Module], object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConvertError, match=reason):
        taken(changed(layout, change), tmp_path)


def pruned_net() -> nn.Module:
    net = fresh("torchvision")
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            prune.l1_unstructured(module, "weight", amount=0.25)
    prune.random_unstructured(net.fc, "bias", amount=0.5)
    return net


def test_pruned_nets_are_multiplied_by_their_masks(tmp_path: Path) -> None:
    net = pruned_net()
    whole, alone = taken(net, tmp_path), taken(net.state_dict(), tmp_path, stem="imagenet")
    assert sum(name.endswith("_mask") for name in net.state_dict()) == 20
    for module in net.modules():
        for name in ("weight", "bias"):
            if hasattr(module, f"{name}_orig"):
                prune.remove(module, name)
    for found in (whole, alone):
        assert "pruned: 20 tensors are their originals times their masks, 25 % zeros" in found.notes
        assert_same(found.tensors, dict(net.state_dict()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conv1.0.weight_mask": torch.full((8, 3, 3, 3), 0.5)}, "has other values than 0 and 1"),
        ({"conv1.0.weight_mask": torch.ones(8)}, r"weight_mask \[8\]; the file is damaged"),
        ({"conv1.0.weight_mask": torch.ones(8, 3, 3, 3).to_sparse()}, "to be plain tensors on the CPU"),
        ({"conv1.0.weight_orig": torch.full((8, 3, 3, 3), torch.nan)}, r"conv1\.0\.weight is not finite"),
    ],
)
def test_masks_that_are_none_are_refused(change: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(ConvertError, match=reason):
        find_net({**pruned_net().state_dict(), **change})


def test_modules_without_a_net_are_no_obstacle_and_no_net(tmp_path: Path) -> None:
    tensors = small_state_dict("seed")
    assert_same(taken({"model": tensors, "loss": nn.CrossEntropyLoss()}, tmp_path).tensors, tensors)
    with pytest.raises(ConvertError, match="no ShuffleNetV2 in it; it looks like another net"):
        taken(nn.Sequential(nn.Linear(2, 3)), tmp_path)


def test_a_module_that_is_in_itself_is_refused(tmp_path: Path) -> None:
    net = fresh("seed")
    net._modules["self"] = net
    with pytest.raises(ConvertError, match="more than 10,000 modules in each other"):
        taken(net, tmp_path)


class ChannelShuffle2(ShuffleBlock):
    """Called as pytorchcv's."""


class Calls(nn.Module):
    """A module whose pickle also calls a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("open('touched', 'w')",)


def test_a_module_whose_pickle_calls_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = fresh("seed")
    net.extra = Calls()
    for data in (saved(net), legacy(net)):
        (tmp_path / "net.pt").write_bytes(data)
        with pytest.raises(ConvertError, match=r"needs to run builtins\.eval"):
            take(tmp_path / "net.pt")
    assert not (tmp_path / "touched").exists()
