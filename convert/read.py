"""Opening a file that nobody vouches for: what kind it is, and its tensors. Nothing in it ever runs."""

import argparse
import errno
import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from convert import inert_archives
from convert.errors import ConvertError, listing

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Files that turn up under a checkpoint's name, by how they begin.
_OTHER_FILES = {
    b"version https://git-lfs": "a Git-LFS pointer, not the file it points to; fetch it with 'git lfs pull'",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"\xfd7zXZ": "xz-compressed; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?), not a PyTorch checkpoint",
    b"\x93NUMPY": "a NumPy array, not a PyTorch checkpoint",
    b"<": "a web page or XML, perhaps a download that went wrong",
    b"\x08": "perhaps an ONNX model; save the PyTorch net's state_dict() instead",
}

_numpy_scalar = np.float64(0).__reduce__()[0]  # numpy has no public name for it

# Harmless values that training scripts put beside the weights, under the names pickles have for them.
_HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]

_MAX_UNPACKED = 8  # times the file's size; compressed source code in TorchScript archives stays below


class Source(NamedTuple):
    """A file's content: nested mappings that hold tensors among other values."""

    path: Path
    sha256: str
    kind: str
    content: Any
    metadata: dict[str, str]


def read(path: str | os.PathLike[str]) -> Source:
    """Opens a checkpoint of any kind.

    Raises:
        ConvertError: the file cannot be read or is no checkpoint; one line that says what it is and what to do.
    """
    path = Path(path)
    data = _read_bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        kind, content, metadata = _parse(data)
    except ConvertError as error:
        raise ConvertError(f"{path}: {error}") from None
    return Source(path, sha256, kind, content, metadata)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ConvertError(f"{path}: a folder; name the checkpoint file in it")
        if path.exists() and not path.is_file():
            raise ConvertError(f"{path}: not a regular file")
        return path.read_bytes()
    except OSError as error:
        reason = {
            errno.ENOENT: "no such file",
            errno.ELOOP: "a link that leads back to itself",
            errno.EACCES: "may not be read; check its permissions",
        }.get(error.errno or 0, os.strerror(error.errno or 0))
        raise ConvertError(f"{path}: {reason}") from None


def _parse(data: bytes) -> tuple[str, Any, dict[str, str]]:
    if not data:
        raise ConvertError("the file is empty; copy or download it again")
    if data.startswith(b"PK\x03\x04"):
        return _parse_zip(data)
    if data.startswith(_LEGACY_MAGIC):
        return "PyTorch (legacy format)", _torch_load(data), {}
    if len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
        return _parse_safetensors(data)
    for beginning, what in _OTHER_FILES.items():
        if data.startswith(beginning):
            raise ConvertError(what)
    if data.startswith(b"\x80"):
        raise ConvertError("a bare pickle, which could run code; save the net with torch.save(net.state_dict(), path)")
    raise ConvertError("not a checkpoint that PyTorch or safetensors writes; is the file whole?")


def _parse_zip(data: bytes) -> tuple[str, Any, dict[str, str]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
        raise ConvertError("a damaged zip archive; the file is cut off or altered, copy or download it again") from None
    if unpacked > _MAX_UNPACKED * len(data):
        raise ConvertError(f"claims to unpack from {len(data):,} to {unpacked:,} bytes, which no checkpoint does")
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or any(name.startswith("data/weights/") for name in inner):
        return "exported program (.pt2)", inert_archives.read_exported_program(data), {}
    if "constants.pkl" in inner:
        return "TorchScript archive", inert_archives.read_torchscript(data), {}
    if "data.pkl" in inner:
        return "PyTorch", _torch_load(data), {}
    raise ConvertError("a zip archive, but not a checkpoint that torch.save wrote")


def _torch_load(data: bytes) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS_GLOBALS):
            warnings.simplefilter("ignore")  # of deprecated storages in old files
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConvertError(_explain_refusal(data, error)) from None
    except Exception as error:  # whatever a damaged file makes torch's readers raise
        raise ConvertError(f"the file is damaged ({_first_line(error)}); copy or download it again") from None


def _explain_refusal(data: bytes, error: Exception) -> str:
    """Why torch would not read a file as data alone."""
    try:
        with torch.serialization.safe_globals(_HARMLESS_GLOBALS):
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))  # pyright: ignore
    except Exception:  # legacy and damaged files cannot be searched
        names = []
    if not names and "GLOBAL " in str(error):
        names = [str(error).partition("GLOBAL ")[2].split()[0]]
    modules = [
        name for name in names if not name.startswith(("torch.nn.", "torch._utils", "builtins.", "collections."))
    ]
    if any(".nn.modules." in name for name in names) or any("ShuffleNet" in name for name in names):
        whole = next((name for name in modules if "ShuffleNet" in name), (modules or names)[0])
        return (
            f"a whole pickled module ({whole}), which only runs with its code; load it where that code is and "
            "save its state_dict() instead"
        )
    if names:
        return (
            f"needs to run {listing(names)}, which a file of data has no business with; "
            "save the net's state_dict() alone"
        )
    return f"the file is damaged ({_first_line(error)}); copy or download it again"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def _parse_safetensors(data: bytes) -> tuple[str, Mapping[str, torch.Tensor], dict[str, str]]:
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return "safetensors", safetensors.torch.load(data), dict(header.get("__metadata__") or {})
    except (SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise ConvertError(f"a damaged safetensors file ({_first_line(error)}); copy or download it again") from None
