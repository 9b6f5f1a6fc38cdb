"""Small real checkpoints of every layout in every format that PyTorch writes."""

import copy
import functools
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from convert_tools import small_architecture

from convert import mapping, pipeline
from convert.contents.select import Net, find_net
from convert.errors import ConvertError
from convert.files.read import read
from convert.layouts import LAYOUTS
from convert.origin import describe_origin
from torch_ref.randomise import randomise


@functools.cache
def small_net(layout: str, num_classes: int = 10, **fields: Any) -> torch.nn.Module:
    """A net of a few channels with random weights and statistics, in eval mode."""
    torch.manual_seed(0)
    return randomise(LAYOUTS[layout].build_reference(small_architecture(layout, num_classes, **fields))).eval()


def fresh_net(layout: str) -> torch.nn.Module:
    """Its own, to be changed."""
    return copy.deepcopy(small_net(layout))


def small_state_dict(layout: str, num_classes: int = 10, **fields: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in small_net(layout, num_classes, **fields).state_dict().items()}


def saved(content: object, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def in_safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(tensors)


def torchscript(net: torch.nn.Module, scripted: bool = False) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but its files are still about
        module = torch.jit.script(net) if scripted else torch.jit.trace(net, _images(net), check_trace=False)
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def exported(net: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (_images(net),)), buffer)
    return buffer.getvalue()


def _without_its_function(net: torch.nn.Module) -> torch.nn.Module:
    """With its tensors alone: tracing the layers, which nobody reads, takes most of a second."""
    net = copy.deepcopy(net)
    net.forward = lambda images: images.sum()
    return net


def _images(net: torch.nn.Module) -> torch.Tensor:
    """kuangliu's net takes small images only, some others large ones only."""
    size = 32 if type(net).__module__.endswith("kuangliu") else 224
    return torch.zeros(1, 3, size, size)


@functools.cache
def all_formats(layout: str) -> dict[str, bytes]:
    net = small_net(layout)
    traced = net if layout == "seed" else _without_its_function(net)
    tensors = small_state_dict(layout)
    return {
        "zip": saved(tensors),
        "legacy": legacy(tensors),
        "safetensors": in_safetensors(tensors),
        "torchscript": torchscript(traced),
        "pt2": exported(traced),
    }


def take(path: Path, **options: Any) -> Net:
    """Everything that converting a file does, but for the proof: read, find, check, map there and back."""
    net = find_net(read(path).content, **options)
    mapping.check_names_and_shapes(net.layout, net.architecture, net.tensors)
    arrays = mapping.to_arrays(net.layout, net.architecture, net.tensors)
    pipeline._check_round_trip(net, arrays, describe_origin(net))
    return net


def write(path: Path, content: object) -> Path:
    """Saves it there."""
    path.write_bytes(saved(content))
    return path


def refusal(path: Path, **options: Any) -> str:
    """Why a file is not converted."""
    with pytest.raises(ConvertError) as refused:
        take(path, **options)
    return str(refused.value).removeprefix(f"{path}: ")


def assert_same(found: dict[str, torch.Tensor], original: dict[str, torch.Tensor]) -> None:
    """The same names, dtypes, shapes and bits, in whatever order."""
    assert set(found) == set(original)
    for name, tensor in found.items():
        other = original[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert torch.equal(pipeline._bits(tensor), pipeline._bits(other)), name
