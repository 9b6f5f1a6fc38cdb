"""The files that PyTorch writes - torch.save's of both formats, TorchScript, exported programs - read as data.

PyTorch's own loaders may run what is in the file (``torch.jit.load`` a module's ``__setstate__``,
``torch.export.load`` a pickle). Here the tensors are taken out and nothing else is looked at.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from convert.errors import ConvertError, printable
from convert.files import other_archives
from convert.files.inert_pickle import MAX_PICKLE, DamagedPickleError, InertUnpickler, StandIn, Storage, view_tensor
from convert.files.module_names import Names
from convert.files.whole_modules import unfold

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

_DAMAGED = "a damaged zip archive; the file is cut off or altered, copy or download it again"
_BIG_ENDIAN = "written on a big-endian machine; load it there and save it as safetensors"

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
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}

# What a file may unpack to: its own size eightfold, and room for the source code in TorchScript archives.
_MAX_UNPACKED = 8
_ROOM = 16 << 20
_MAX_ENTRIES = 50_000
_BEGINNING = 1 << 16


class _Archive:
    """A zip file of which no entry unpacks to more than ``size`` allows: the file's own, or of the one around it."""

    def __init__(self, data: bytes, size: int) -> None:
        # Each entry costs far more memory than its few bytes in the file.
        if data.count(zipfile.stringCentralDir) > _MAX_ENTRIES:  # pyrefly: ignore[missing-attribute]
            raise ConvertError(f"a zip archive of more than {_MAX_ENTRIES:,} entries, which no checkpoint is")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except Exception:  # BadZipFile, and whatever damaged numbers make of zipfile
            raise ConvertError(_DAMAGED) from None
        # Cut off, a file that contains another archive is taken for that one with something before it.
        if min((entry.header_offset for entry in self._zip.infolist()), default=0):
            raise ConvertError(_DAMAGED)
        self._entries = {entry.filename: entry for entry in self._zip.infolist()}
        unpacked = sum(entry.file_size for entry in self._zip.infolist())
        if unpacked > _MAX_UNPACKED * size + _ROOM:
            raise ConvertError(
                f"claims to unpack from {size:,} to {unpacked:,} bytes, which no checkpoint does; "
                "copy or download it again"
            )
        self.size = size
        for entry in self._entries.values():
            if entry.CRC == 0:  # torch.serialization.set_crc32_options(False)
                entry.CRC = None  # pyrefly: ignore[bad-assignment]
        self._storages: dict[str, bytearray] = {}
        root = self.root("byteorder")
        if root is not None and self.read(f"{root}byteorder") != b"little":
            raise ConvertError(_BIG_ENDIAN)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def root(self, name: str) -> str | None:
        """The archive's top folder, named after the file it was first saved as, if ``name`` is in it."""
        return next((entry.removesuffix(name) for entry in self._entries if entry.partition("/")[2] == name), None)

    def read(self, name: str, most: int | None = None) -> bytes:
        """An entry's bytes, or the first of them."""
        if name not in self._entries:
            raise ConvertError(f"a damaged archive: {name} is missing; copy or download it again")
        entry = self._entries[name]
        # bzip2 and lzma entries unpack without a bound.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConvertError(f"{name} is compressed in a way that PyTorch does not; unpack and save it again")
        try:
            with self._zip.open(entry) as file:
                return file.read(entry.file_size if most is None else most)  # unbounded, it unpacks before it counts
        except Exception as error:  # zlib, checksum and size errors alike
            raise ConvertError(
                f"a damaged archive: {name} cannot be read ({error or type(error).__name__}); copy or download it again"
            ) from None

    def read_text(self, name: str) -> bytes:
        """A pickle or JSON, which may take far more memory than its bytes."""
        if name in self._entries and self._entries[name].file_size > MAX_PICKLE:
            what = f"{name} has {self._entries[name].file_size:,} bytes"
            raise ConvertError(other_archives.explain_large_pickle(what, self.read(name, _BEGINNING)))
        return self.read(name)

    def storage(self, name: str, dtype: torch.dtype) -> Storage:
        """An entry's bytes, which all tensors on them share."""
        if name not in self._storages:
            self._storages[name] = bytearray(self.read(name))
        return Storage(self._storages[name], dtype)


def read_zip(data: bytes) -> tuple[str, Any]:
    """What kind of zip archive this is, and its content.

    Raises:
        ConvertError: the archive is damaged, is none of PyTorch's, or holds what is no data.
    """
    archive = _Archive(data, len(data))
    weights = [name for name in archive.names if "/data/weights/" in f"/{name}"]
    if weights or archive.root("archive_format") is not None or "serialized_state_dict.pt" in archive.names:
        return "exported program (.pt2)", _read_exported_program(archive, weights)
    return _read_saved(archive)


def _read_saved(archive: _Archive) -> tuple[str, Any]:
    """What torch.save or torch.jit.save wrote."""
    root = archive.root("data.pkl")
    if root is None:
        raise ConvertError(other_archives.explain(archive.names))

    def find_storage(dtype: torch.dtype, key: str, _: Any, count: int, *__: Any) -> Storage:
        storage = archive.storage(f"{root}data/{key}", dtype)
        found = len(storage.buffer)
        if found // dtype.itemsize != count:
            raise ConvertError(
                f"data/{printable(key, 40)} has {found:,} bytes for what is said to be {count:,} values of "
                f"{str(dtype).removeprefix('torch.')}; the file is damaged or altered, copy or download it again"
            )
        return storage

    pickled = io.BytesIO(archive.read_text(f"{root}data.pkl"))
    if f"{root}constants.pkl" in archive.names:
        module = InertUnpickler(pickled, find_storage, lambda name: name.startswith("__torch__.")).load()
        tensors = _collect_tensors(module)
        if not tensors:
            raise ConvertError("a TorchScript archive without parameters; save the net's state_dict() before freezing")
        return "TorchScript archive", tensors
    return "PyTorch", unfold(InertUnpickler(pickled, find_storage).load())


def _collect_tensors(module: Any) -> dict[str, torch.Tensor]:
    """A scripted module's tensors under the names of its ``state_dict()``."""
    tensors: dict[str, torch.Tensor] = {}
    names = Names()
    pending = [("", module)] if isinstance(module, StandIn) else []
    while pending:
        prefix, part = pending.pop()
        names.enter(prefix)
        for name, value in names.of(prefix, part.attributes):
            if isinstance(value, torch.Tensor):
                tensors[name] = value
            elif isinstance(value, StandIn):
                pending.append((f"{name}.", value))
    return tensors


def read_legacy(data: bytes) -> Any:
    """What torch.save wrote before PyTorch 1.6: pickles, then the bytes of all storages.

    Raises:
        ConvertError: the file is damaged, or holds what is no data.
    """
    storages: dict[str, Storage] = {}
    claimed = 0

    def find_storage(dtype: torch.dtype, key: str, _: Any, count: int, part: Any) -> Storage:
        nonlocal claimed
        if key not in storages:
            claimed += count * dtype.itemsize
            if claimed > len(data):
                raise ConvertError(
                    f"claims tensors of {claimed:,} bytes in a file of {len(data):,}; it is cut off or altered, "
                    "copy or download it again"
                )
            storages[key] = Storage(bytearray(count * dtype.itemsize), dtype)
        if part is None:
            return Storage(storages[key].buffer, dtype)
        _, first, size = part
        return Storage(memoryview(storages[key].buffer)[first * dtype.itemsize :][: size * dtype.itemsize], dtype)

    pickles = io.BytesIO(data[:MAX_PICKLE])
    try:
        _, _, system, content, keys = (InertUnpickler(pickles, find_storage).load() for _ in range(5))
    except DamagedPickleError:
        if pickles.tell() < MAX_PICKLE:
            raise
        what = f"its pickle has over {MAX_PICKLE:,} bytes"
        raise ConvertError(other_archives.explain_large_pickle(what, data[:_BEGINNING])) from None
    if isinstance(system, Mapping) and system.get("little_endian") is False:
        raise ConvertError(_BIG_ENDIAN)
    position = pickles.tell()
    for key in keys if isinstance(keys, list) else ():
        storage = storages.pop(key, None) if isinstance(key, str) else None
        if storage is None:
            raise ConvertError("the file is damaged (a storage that no tensor uses); copy or download it again")
        start = position + 8
        position = start + len(storage.buffer)
        count = int.from_bytes(data[start - 8 : start], "little")
        if count * storage.dtype.itemsize != len(storage.buffer) or position > len(data):
            raise ConvertError("the file is damaged or cut off among its tensors; copy or download it again")
        storage.buffer[:] = data[start:position]
    if storages:
        raise ConvertError("the file is damaged (tensors without values); copy or download it again")
    return unfold(content)


def _read_exported_program(archive: _Archive, weights: list[str]) -> Any:
    """An exported program's ``state_dict``."""
    # PyTorch before 2.9 keeps a file of torch.save's in the archive.
    saved = [name for name in (*weights, "serialized_state_dict.pt") if name.endswith(".pt") and name in archive.names]
    if len(saved) == 1:
        kind, content = _read_saved(_Archive(archive.read(saved[0]), archive.size))
        if kind != "PyTorch":
            raise ConvertError(f"an exported program with a {kind} for its weights; save its state_dict instead")
        return content
    configs = [name for name in archive.names if name.endswith("_weights_config.json")]
    if len(configs) != 1:
        raise ConvertError(
            f"an exported program with {len(configs)} sets of weights, not one; save its state_dict instead"
        )
    folder = configs[0].rpartition("/")[0]
    try:
        config = json.loads(archive.read_text(configs[0]))["config"]
        return {name: _exported_tensor(archive, folder, entry) for name, entry in config.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(f"a damaged exported program ({type(error).__name__}); copy or download it again") from None


def _exported_tensor(archive: _Archive, folder: str, entry: dict[str, Any]) -> torch.Tensor:
    if entry["use_pickle"]:
        raise ConvertError(
            "an exported program with pickled weights, which could run code; save its state_dict instead"
        )
    meta = entry["tensor_meta"]
    size, stride = ([number["as_int"] for number in meta[field]] for field in ("sizes", "strides"))
    storage = archive.storage(f"{folder}/{entry['path_name']}", _DTYPES_BY_NUMBER[meta["dtype"]])
    return view_tensor(storage, meta["storage_offset"]["as_int"], size, stride)
