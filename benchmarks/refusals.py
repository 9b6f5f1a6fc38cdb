"""``python -m benchmarks.refusals``: files that are refused, why, and what ``python -m convert`` says of each.

Every file is made anew, with PyTorch where it is PyTorch's, and given to the command; the table is docs/refusals.md's.
"""

import contextlib
import io
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.layouts import Tensors, head_of_two_layers, net_of, other_tensors, tensors_of
from convert import ConvertError
from convert.__main__ import convert
from convert.layouts import LAYOUTS
from convert.options import Options
from flax_shufflenet import preset
from flax_shufflenet.weights import read_metadata


class Case(NamedTuple):
    """A file, made when it is wanted: its bytes, what torch.save is to write, or None where there is none."""

    what: str
    why: str
    make: Callable[[], Any]
    output: str | None = None
    name: str = "net.pt"
    refused_by: str = "convert"


def _torchvisions(change: Callable[[nn.Module], object]) -> Tensors:
    net = net_of("torchvision", 10).eval()
    change(net)
    return dict(net.state_dict())


def _each(net: nn.Module, kind: type[nn.Module], change: Callable[[nn.Module], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is deprecated, but its files are about
        for module in [module for module in net.modules() if isinstance(module, kind)]:
            change(module)


def _normed(norm: Callable[[nn.Module], object]) -> Callable[[], Tensors]:
    return lambda: _torchvisions(lambda net: _each(net, nn.Conv2d, norm))


def _fold(net: nn.Module) -> None:
    for part in LAYOUTS["torchvision"].parts_of(preset("torchvision", 0.5)):
        conv, bn = net.get_submodule(part.conv), net.get_submodule(part.bn)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        net.set_submodule(part.conv, fuse_conv_bn_eval(conv, bn))
        net.set_submodule(part.bn, nn.Identity())


def _group_normed(net: nn.Module) -> None:
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.GroupNorm(2, module.num_features))


def _with(name: str, module: nn.Module) -> Callable[[], Tensors]:
    return lambda: _torchvisions(lambda net: net.set_submodule(name, module))


def _changed(change: Callable[[torch.Tensor], torch.Tensor], *names: str) -> Callable[[], Tensors]:
    """With these tensors changed, or all floating-point ones."""
    return lambda: {
        name: change(tensor) if name in names or (not names and tensor.is_floating_point()) else tensor
        for name, tensor in tensors_of("torchvision", 10).items()
    }


def _without(*beginnings: str) -> Tensors:
    return {name: tensor for name, tensor in tensors_of("torchvision").items() if not name.startswith(beginnings)}


def _quantised() -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files are about
        net = torch.ao.quantization.quantize_dynamic(net_of("torchvision"), {nn.Linear}, torch.qint8)  # pyrefly: ignore[deprecated]
    return dict(net.state_dict())


def _lost_names(end: int | None = None) -> Tensors:
    return dict(nn.Sequential(*list(net_of("torchvision", 10).children())[:end]).state_dict())


def _arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors_of("torchvision", 10).items()}


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays())  # pyrefly: ignore[bad-argument-type]
    return buffer.getvalue()


def _unfinished() -> bytes:
    buffer = io.BytesIO()
    with contextlib.suppress(RuntimeError):  # PyTorch refuses such a module after it has begun the file
        torch.save(parametrizations.weight_norm(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def _silu() -> nn.Module:
    net = net_of("torchvision", 10)
    net.set_submodule("conv1.2", nn.SiLU())
    return net


class _Calls:
    """Pickles as a call."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("run",)


def cases() -> Iterator[Case]:
    """One of each kind: nets that are almost a ShuffleNetV2's, other content, other files, and names of files."""
    yield from _nets()
    yield from _values()
    yield from _contents()
    yield from _files()


def _nets() -> Iterator[Case]:
    computed = "the file has what the weights are computed from, and not the weights"
    yield Case("weight normalisation, `nn.utils.weight_norm`", computed, _normed(nn.utils.weight_norm))
    yield Case("weight normalisation, `parametrizations`", computed, _normed(parametrizations.weight_norm))
    yield Case("spectral normalisation", computed, _normed(parametrizations.spectral_norm))
    yield Case(
        "batch normalisations folded into the convolutions",
        "one bias is left of four vectors of each batch normalisation",
        lambda: _torchvisions(_fold),
    )
    yield Case(
        "GroupNorm, or the parameters alone",
        "batch normalisation needs its running statistics",
        lambda: _torchvisions(_group_normed),
    )
    yield Case("a head of several layers", "the net here has one linear layer", head_of_two_layers)
    yield Case("a convolution for a head", "the net here has one linear layer", _with("fc", nn.Conv2d(1024, 10, 1)))
    yield Case(
        "other layers beside the net",
        "nothing tells where they stand",
        lambda: tensors_of("torchvision") | other_tensors("neck.weight"),
    )
    yield Case(
        "squeeze-and-excitation in its blocks",
        "the net here has no such layers",
        lambda: tensors_of("pytorchcv") | other_tensors("features.stage1.unit1.se.conv1.weight"),
    )
    yield Case(
        "convolutions with biases",
        "the layout's have none",
        lambda: tensors_of("torchvision") | {"conv1.0.bias": torch.ones(24)},
    )
    yield Case(
        "prepared for quantisation",
        "its observers are no part of the net",
        lambda: tensors_of("torchvision") | {"conv1.0.activation_post_process.min_val": torch.ones(1)},
    )
    yield Case("grey images", "all nets here take 3 channels", _with("conv1.0", nn.Conv2d(1, 24, 3, 2, 1, bias=False)))
    yield Case(
        "images of 4 channels", "all nets here take 3 channels", _with("conv1.0", nn.Conv2d(4, 24, 3, 2, 1, bias=False))
    )
    yield Case("a stem of 7x7", "the layout's has 3x3", _with("conv1.0", nn.Conv2d(3, 24, 7, 2, 3, bias=False)))
    yield Case("tensors missing", "each part of the net is needed", lambda: _without("stage3.2.branch2.0."))
    yield Case(
        "several nets", "one file is one net", lambda: {"student": tensors_of("seed"), "teacher": tensors_of("megvii")}
    )
    yield Case("a whole module with another activation", "the net here has ReLU or LeakyReLU", _silu)


def _values() -> Iterator[Case]:
    yield Case("float8", "the net computes in float32 or float64", _changed(lambda t: t.to(torch.float8_e4m3fn)))
    yield Case(
        "whole numbers for weights", "what rounding took is not in the file", _changed(lambda t: t.to(torch.int8))
    )
    yield Case("complex numbers", "weights are real", _changed(lambda t: t.to(torch.complex64)))
    yield Case("float64 beside float32", "a net's weights have one dtype", _changed(torch.Tensor.double, "fc.weight"))
    yield Case("NaN", "it has no value", _changed(lambda t: t * torch.nan, "fc.weight"))
    yield Case("int8-quantised", "what rounding took is not in the file", _quantised)


def _contents() -> Iterator[Case]:
    unnamed = "the layout is known by the names"
    yield Case("names lost in a Sequential", unnamed, _lost_names)
    yield Case("names lost in a Sequential, without the head", unnamed, lambda: _lost_names(-1))
    yield Case("tensors without names", unnamed, lambda: list(tensors_of("torchvision").values()))
    yield Case(
        "a ShuffleNetV2 of no known layout",
        unnamed,
        lambda: other_tensors("body.0.branch_main.9.weight", "body.0.branch_main.8.running_mean"),
    )
    arrays = "to read them, a pickle would have to call NumPy"
    yield Case("NumPy arrays, saved by `torch.save`", arrays, _arrays)
    yield Case("NumPy arrays, saved by `np.savez`", "no checkpoint of PyTorch's", _npz, name="net.npz")
    yield Case("an optimiser alone", "no net in it", lambda: torch.optim.SGD(net_of("seed").parameters()).state_dict())
    yield Case(
        "ShuffleNet version 1", "another net", lambda: other_tensors("stage2.0.g_conv_1x1_compress.conv1x1.weight")
    )
    yield Case("ShuffleNet version 1, kuangliu's", "another net", lambda: other_tensors("layer1.0.bn3.weight"))
    yield Case("MobileNetV2, for one of many", "another net", lambda: other_tensors("features.1.conv.0.0.weight"))
    yield Case(
        "a pickle that calls something", "nothing in a file runs", lambda: {"net": tensors_of("seed"), "x": _Calls()}
    )
    yield Case("a bare pickle", "nothing in a file runs", lambda: pickle.dumps(tensors_of("seed")), name="net.pkl")


def _files() -> Iterator[Case]:
    other = "another program's"
    yield Case(
        "a web address", "files are read, nothing is downloaded", lambda: None, name="https://example.org/net.pt"
    )
    yield Case("a name mistyped", "there is none of this name", lambda: None, name="net_bset.pt")
    yield Case("a folder", "it holds many files", lambda: None, name=".")
    yield Case("a file that torch.save did not finish", "it has no tensors", _unfinished)
    yield Case("a file cut off", "not all of it is there", lambda: _saved(tensors_of("seed"))[:9999])
    yield Case("a pointer of Git-LFS", "the file is elsewhere", lambda: b"version https://git-lfs.github.com/spec/v1\n")
    yield Case("a web page", "no checkpoint", lambda: b"<!DOCTYPE html>", name="download.pt")
    yield Case("compressed", "no checkpoint as it is", lambda: b"\x1f\x8b\x08\x00", name="net.pt.gz")
    yield Case("ONNX", other, lambda: b"\x08\x0a\x12\x07pytorch", name="net.onnx")
    yield Case("Keras", other, lambda: b"\x89HDF\r\n\x1a\n", name="net.h5")
    yield Case("TensorFlow", other, lambda: b"\x08\x01\x12\xd3\x05", name="saved_model.pb")
    yield Case("an output of another format", "the wrong program would open it", lambda: tensors_of("seed"), "copy.pth")
    yield Case(
        "PyTorch's file, given to predict, evaluate, export or `train.py --init`",
        "they take nets of Flax",
        lambda: tensors_of("seed"),
        refused_by="predict",
    )


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def refusal(case: Case) -> str:
    """What the command says of the file in the current folder."""
    content, path = case.make(), Path(case.name)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else _saved(content))
    try:
        if case.refused_by == "convert":
            convert(Options(path, output=None if case.output is None else Path(case.output)))
        else:
            read_metadata(path)
    except (ConvertError, ValueError) as error:
        return f"{case.refused_by}: {error}"
    raise AssertionError(f"{case.what} is not refused")


def table() -> Iterator[str]:
    """docs/refusals.md's lines."""
    yield "| what it is | why it is refused | what is said |"
    yield "|---|---|---|"
    for case in cases():
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("net_best.pt").touch()
            yield f"| {case.what} | {case.why} | `{refusal(case)}` |"


def main() -> int:
    for line in table():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
