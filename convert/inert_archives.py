"""TorchScript archives and exported programs (.pt2), read as data.

PyTorch's own loaders of these two formats may run what is in the file: ``torch.jit.load`` a module's
``__setstate__``, ``torch.export.load`` a pickle. Here the tensors are taken out and nothing else is looked at.
"""

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from convert.errors import ConvertError

_DTYPES_BY_STORAGE = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# torch._export.serde.schema.ScalarType
_DTYPES_BY_NUMBER = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}


class _Object:
    """Stands for a scripted module: it keeps the attributes it is given."""


def read_torchscript(data: bytes) -> dict[str, Any]:
    """A scripted or traced module's tensors under the names of its ``state_dict()``.

    Raises:
        ConvertError: the archive is damaged, or holds more than modules and tensors.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = _root(archive, "data.pkl")
        pickled = _entry(archive, f"{root}data.pkl")
        try:
            module = _InertUnpickler(pickled, lambda key: _entry(archive, f"{root}data/{key}")).load()
        except ConvertError:
            raise
        except Exception as error:  # whatever a damaged pickle makes the unpickler raise
            raise ConvertError(f"a damaged TorchScript archive ({type(error).__name__}); copy it again") from None
    tensors: dict[str, Any] = {}
    _collect_tensors(module, "", tensors, depth=0)
    return tensors


def _collect_tensors(module: Any, prefix: str, tensors: dict[str, Any], depth: int) -> None:
    if depth > 32:
        raise ConvertError("modules nested more than 32 deep; this is no ShuffleNetV2")
    for name, value in getattr(module, "__dict__", {}).items():
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, _Object):
            _collect_tensors(value, f"{prefix}{name}.", tensors, depth + 1)


# Python's own unpickler, not the C one: that sizes its table by numbers in the file.
class _InertUnpickler(pickle._Unpickler):
    """Builds objects without behaviour and tensors within their storage's bounds; refuses every other name."""

    def __init__(self, pickled: bytes, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._read_storage = read_storage
        self._storages: dict[str, bytes] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Object
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES_BY_STORAGE:
            return _DTYPES_BY_STORAGE[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _same
        raise ConvertError(f"a TorchScript archive that needs {module}.{name}; save the net's state_dict() instead")

    def persistent_load(self, pid: Any) -> tuple[bytes, torch.dtype]:
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            self._storages[key] = self._read_storage(key)
        return self._storages[key], dtype


def _same(value: Any) -> Any:
    return value


def _rebuild_tensor(
    storage: tuple[bytes, torch.dtype], offset: int, size: Sequence[int], stride: Sequence[int], *_
) -> torch.Tensor:
    return _tensor(*storage, offset, size, stride)


def _tensor(data: bytes, dtype: torch.dtype, offset: int, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    if math.prod(size) * dtype.itemsize > len(data):
        raise ConvertError(f"a tensor of {list(size)} claims more than the {len(data)} bytes stored for it")
    if not data:
        return torch.empty(tuple(size), dtype=dtype)
    # frombuffer wants a writable buffer; as_strided checks the bounds.
    return torch.frombuffer(bytearray(data), dtype=dtype).as_strided(tuple(size), tuple(stride), offset)


def read_exported_program(data: bytes) -> dict[str, torch.Tensor]:
    """An exported program's ``state_dict``.

    Raises:
        ConvertError: the archive is damaged, or its weights are pickled.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = _root(archive, "archive_format")
        configs = [name for name in archive.namelist() if name.endswith("_weights_config.json")]
        if len(configs) != 1:
            raise ConvertError(f"an exported program with {len(configs)} sets of weights; expected one")
        try:
            config = json.loads(_entry(archive, configs[0]))["config"]
            return {name: _exported_tensor(archive, f"{root}data/weights/", entry) for name, entry in config.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
            raise ConvertError(f"a damaged exported program ({type(error).__name__}); copy it again") from None


def _exported_tensor(archive: zipfile.ZipFile, folder: str, entry: dict[str, Any]) -> torch.Tensor:
    if entry["use_pickle"]:
        raise ConvertError("an exported program with pickled weights, which could run code; save its state_dict()")
    meta = entry["tensor_meta"]
    size, stride = ([number["as_int"] for number in meta[field]] for field in ("sizes", "strides"))
    data = _entry(archive, folder + entry["path_name"])
    return _tensor(data, _DTYPES_BY_NUMBER[meta["dtype"]], meta["storage_offset"]["as_int"], size, stride)


def _root(archive: zipfile.ZipFile, name: str) -> str:
    """The archive's own top folder, which is named after the file it was first saved as."""
    return next(entry.removesuffix(name) for entry in archive.namelist() if entry.partition("/")[2] == name)


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise ConvertError(f"a damaged archive: {name} is missing; copy it again") from None
    except Exception as error:  # zlib, checksum and size errors alike
        raise ConvertError(f"a damaged archive: {name} cannot be read ({error}); copy it again") from None
