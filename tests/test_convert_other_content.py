"""Files with no net that can be found in them: what is said of each, and that what it advises works."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_tools import assert_same, fresh_net, refusal, saved, small_state_dict, take, write
from convert_tools import small_architecture
from torch import nn
from torch.nn.utils import parametrizations

from convert.files.inert_pickle import MAX_PICKLE
from convert.layouts import LAYOUTS


def children(net: nn.Module) -> list[nn.Module]:
    return list(net.children())


@pytest.mark.parametrize(
    "layout", ["seed", "kuangliu", "torchvision", "weiaicunzai", "megvii", "pytorchcv", "ericsun99"]
)
def test_names_that_were_lost_in_a_sequential_can_be_found_again(layout: str, tmp_path: Path) -> None:
    lost = nn.Sequential(*children(fresh_net(layout)))
    for number, content in enumerate(
        (lost.state_dict(), lost, {"module." + n: t for n, t in lost.state_dict().items()})
    ):
        assert refusal(write(tmp_path / f"{number}.pt", content)).startswith(
            "a ShuffleNetV2 whose own names are lost, as in nn.Sequential(*net.children()) ("
        )
    net = randomised(layout)
    nn.Sequential(*children(net)).load_state_dict(lost.state_dict())
    assert_same(take(write(tmp_path / "net.pt", net.state_dict())).tensors, small_state_dict(layout))


def randomised(layout: str) -> nn.Module:
    return LAYOUTS[layout].build_reference(small_architecture(layout))


def test_names_that_were_lost_with_the_head(tmp_path: Path) -> None:
    lost = nn.Sequential(*children(fresh_net("torchvision"))[:-1]).state_dict()
    assert refusal(write(tmp_path / "lost.pt", {"state_dict": lost})).endswith("; then convert with --backbone")
    net = randomised("torchvision")
    nn.Sequential(*children(net)[:-1]).load_state_dict(lost)
    found = take(write(tmp_path / "net.pt", net.state_dict()), backbone=True)
    assert_same(found.tensors, {n: t for n, t in small_state_dict("torchvision").items() if not n.startswith("fc.")})


@pytest.mark.parametrize("form", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_numpy_arrays_are_named_and_can_be_made_tensors(form: dict[str, object], tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in small_state_dict("seed").items()}
    large = {**arrays, "conv2.weight": np.ones(MAX_PICKLE // 4, np.float32)}
    for content, said in (
        (arrays, "holds NumPy arrays (conv1.weight; bn1.weight; bn1.bias and "),
        ({"model": arrays, "epoch": 3}, "holds NumPy arrays (conv1.weight; "),
        (large, "too many for the names of tensors: NumPy arrays are in it; "),
    ):
        (tmp_path / "net.pt").write_bytes(saved(content, **form))
        reason = refusal(tmp_path / "net.pt")
        assert said in reason
        assert "torch.save({name: torch.as_tensor(array) for name, array in arrays.items()}, 'net.pt')" in reason
    mended = {name: torch.as_tensor(array) for name, array in arrays.items()}
    assert_same(take(write(tmp_path / "mended.pt", mended)).tensors, small_state_dict("seed"))


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return buffer.getvalue()


def unfinished() -> bytes:
    """PyTorch refuses to pickle a parametrised module after it has begun the file."""
    buffer = io.BytesIO()
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        torch.save(parametrizations.weight_norm(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            lambda: npz(a=np.ones(3), b=np.zeros(2)),
            "NumPy's archive of arrays, as numpy.savez writes it; save them as ",
        ),
        (unfinished, "an archive that torch.save began and did not finish; save the net's state_dict()"),
        (
            lambda: archive("program.jax", "metadata.json"),
            "a program that flax-shufflenet export wrote; name the net's ",
        ),
        (lambda: archive("config.json", "model.weights.h5"), "a Keras file; there is no way from Keras here"),
        (lambda: archive("a/net.pth", "a/log.txt"), "unpack it and name one of them (a/net.pth)"),
        (
            lambda: archive("[Content_Types].xml"),
            "not a checkpoint that torch.save wrote; in it are [Content_Types].xml",
        ),
    ],
)
def test_archives_of_other_programs(data: Callable[[], bytes], said: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(data())
    assert said in refusal(tmp_path / "net.pt")


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyrefly: ignore[bad-argument-type], any name is one of an array
    return buffer.getvalue()


OTHER_NETS = {
    "layer1.0.conv3.weight layer1.0.bn3.weight linear.weight": "a ResNet or ShuffleNet version 1; name another file",
    "layer1.0.conv3.weight layer1.0.bn3.weight layer1.0.downsample.0.weight": "a ResNet; name another file",
    "layer1.0.conv1.weight layer1.0.bn2.weight layer2.0.downsample.0.weight": "a ResNet; name another file",
    "module.layer1.0.conv1.weight module.layer1.0.shortcut.0.weight": "a ResNet; name another file",
    "features.0.0.weight features.1.conv.0.0.weight": "MobileNetV2; name another file",
    "features.0.0.weight features.1.block.0.0.weight": "MobileNetV3; name another file",
    "features.0.0.weight features.1.0.block.0.0.weight": "an EfficientNet; name another file",
    "features.0.0.weight features.1.0.layer_scale features.1.0.block.0.weight": "a ConvNeXt; name another file",
    "features.0.weight classifier.6.weight": "a VGG net or AlexNet; name another file",
    "patch_embed.proj.weight blocks.0.attn.qkv.weight": "a vision transformer; name another file",
    "inception3a.branch1.conv.weight": "an Inception net; name another file",
    "state param_groups": "an optimiser's state alone; name the file with the net's state_dict()",
    "0.weight 0.bias": "another net, with tensors such as 0.weight; 0.bias; name another file",
    "block0.branch_main.7.weight block0.branch_main.8.running_mean": "docs/adding_a_layout.md says how to add one",
}


@pytest.mark.parametrize("names", OTHER_NETS)
def test_other_nets_by_their_names(names: str, tmp_path: Path) -> None:
    value = {} if "param_groups" in names else torch.ones(2, 2)
    reason = refusal(write(tmp_path / "net.pt", {"state_dict": dict.fromkeys(names.split(), value)}))
    assert OTHER_NETS[names] in reason
    assert "again" not in reason


def test_another_nets_numpy_arrays_are_not_worth_making_tensors(tmp_path: Path) -> None:
    arrays = {name: np.ones(2) for name in ("features.0.0.weight", "features.1.conv.0.0.weight")}
    assert refusal(write(tmp_path / "net.pt", arrays)).endswith("it looks like MobileNetV2; name another file")


def test_tensors_without_names(tmp_path: Path) -> None:
    content = list(fresh_net("seed").parameters())
    said = f"it looks like {len(content)} tensors without names; save the net's state_dict(), which has them"
    assert refusal(write(tmp_path / "net.pt", content)).endswith(said)


def test_where_there_is_no_net_no_option_is_complained_of(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pt", {"features.0.weight": torch.ones(2)})
    assert refusal(path, key="model") == refusal(path, use_ema=True) == refusal(path)


def test_convolutions_that_were_fused_with_what_follows_them(tmp_path: Path) -> None:
    """As torch.ao.quantization.fuse_modules does, under names of its own."""
    net = fresh_net("torchvision")
    for stage in map(net.get_submodule, ("stage2", "stage3", "stage4")):
        left = stage.get_submodule("0.branch1")
        torch.ao.quantization.fuse_modules(left, [["0", "1"], ["2", "3", "4"]], inplace=True)
        for block in stage.children():
            torch.ao.quantization.fuse_modules(
                block.branch2, [["0", "1", "2"], ["3", "4"], ["5", "6", "7"]], inplace=True
            )
    torch.ao.quantization.fuse_modules(net.conv1, ["0", "1", "2"], inplace=True)
    reason = refusal(write(tmp_path / "net.pt", net.state_dict()))
    assert reason.startswith("its branches have a ShuffleNetV2's names (stage2.0.branch1.0.weight; ")
    assert reason.endswith("if these are folded into the convolutions, convert the net as it was before")
