"""Opening a file that nobody vouches for: what kind it is, and its tensors. Nothing in it ever runs."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from convert.errors import ConvertError
from convert.files import inert_archives, inert_pickle
from flax_shufflenet.other_files import describe, explain_missing


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
        kind, content, metadata = _parse(path.name, data)
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
    except FileNotFoundError:
        raise ConvertError(explain_missing(path)) from None
    except OSError as error:
        reason = {
            errno.ELOOP: "a link that leads back to itself",
            errno.EACCES: "may not be read; check its permissions",
        }.get(error.errno or 0, os.strerror(error.errno or 0))
        raise ConvertError(f"{path}: {reason}") from None


def _parse(name: str, data: bytes) -> tuple[str, Any, dict[str, str]]:
    if not data:
        raise ConvertError("the file is empty; copy or download it again")
    if data.startswith(b"PK\x03\x04"):
        return *inert_archives.read_zip(data), {}
    if data.startswith(inert_archives.LEGACY_MAGIC):
        return "PyTorch (legacy format)", inert_archives.read_legacy(data), {}
    if data[8:9] == b"{":
        return _parse_safetensors(data)
    if what := describe(name, data):
        raise ConvertError(what)
    if data.startswith(b"\x80"):
        raise ConvertError("a bare pickle, which could run code; save the net with torch.save(net.state_dict(), path)")
    raise ConvertError("not a checkpoint that PyTorch or safetensors writes; is the file whole?")


def _parse_safetensors(data: bytes) -> tuple[str, Mapping[str, torch.Tensor], dict[str, str]]:
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ConvertError("a safetensors file that is cut off in its header; copy or download it again")
    if length > inert_pickle.MAX_PICKLE:
        raise ConvertError(f"a safetensors file with a header of {length:,} bytes, which no ShuffleNetV2 needs")
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + length])
        return "safetensors", tensors, dict(header.get("__metadata__") or {})
    except Exception as error:  # SafetensorError, and whatever a damaged header makes of the package
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        raise ConvertError(f"a damaged safetensors file ({reason}); copy or download it again") from None
