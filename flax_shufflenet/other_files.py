"""What is given for a net's file and is none: nothing at all, or a file of another kind, by how it begins."""

import codecs
import difflib
import itertools
import os
import re
import shlex
import zipfile
from pathlib import Path

_MAX_NAMES = 10_000
_READ = 4096
_SHOWN = 60
_LEGACY_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TENSORFLOW = "a TensorFlow file; no net is read from it here, only PyTorch checkpoints are converted"

_BY_BEGINNING = {
    b"version https://git-lfs": "a Git-LFS pointer, not the file it points to; fetch it with 'git lfs pull'",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"\xfd7zXZ": "xz-compressed; unpack it first",
    b"BZh": "bzip2-compressed; unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89HDF": "an HDF5 file, as Keras writes; no net is read from it here, only PyTorch checkpoints are converted",
    b"\x93NUMPY": "a NumPy array, not a net",
    b"\x89PNG": "an image, not a net",
    b"\xff\xd8\xff": "an image, not a net",
    b"<": "a web page or XML, perhaps a download that went wrong",
    b"\x08\x01\x12": _TENSORFLOW,
    b"\x08": "an ONNX model, it seems, which is not read here; convert the PyTorch net that it was exported from",
}
_BY_NAME = re.compile(r"\.(pb|meta|data-\d{5}-of-\d{5})$", re.IGNORECASE)


def explain_missing(path: Path) -> str:
    """Why there is no file at this path, in one line that names it."""
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/+", str(path)):
        address = f"{scheme[0].rstrip('/')}//{str(path)[scheme.end() :]}"  # of which a path keeps one slash
        return f"{address}: a web address; download the file first, and name that"
    if path.is_symlink():
        return f"{path}: a link to {os.readlink(path)}, where there is no file"
    if path.is_dir():
        return f"{path}: a folder; name the net's file in it"
    if not path.parent.is_dir():
        return f"{path}: no such file; there is no folder {path.parent}"
    close = _close_names(path)
    return f"{path}: no such file{f'; there is {path.with_name(close[0])}' if len(close) == 1 else ''}"


def _close_names(path: Path) -> list[str]:
    """Files beside it whose names are much like its own."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_NAMES) if entry.is_file()]
    except OSError:
        return []
    same = [name for name in names if Path(name).stem.lower() == path.stem.lower()]
    return same or difflib.get_close_matches(path.name, names, n=2, cutoff=0.8)


def describe(name: str, data: bytes) -> str | None:
    """What a file of this name is that begins like this, and what helps; None where that is not known."""
    if data[4:8] == b"TFL3" or data[-8:] == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":  # TensorFlow Lite; a table of names
        return _TENSORFLOW
    start = data[:_READ].lstrip()
    for beginning, what in _BY_BEGINNING.items():
        if start.startswith(beginning):
            return what
    if data[257:262] == b"ustar":
        return "a tar archive; unpack it first, and name the file in it"
    if _BY_NAME.search(name):
        return _TENSORFLOW
    if first_line := _first_line_of_text(start):
        return f"a text file, which begins {first_line!r}; perhaps a download that went wrong"
    return None


def _first_line_of_text(start: bytes) -> str | None:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # where it is cut off matters not
    except UnicodeDecodeError:
        return None
    readable = all(character.isprintable() or character.isspace() for character in text)
    return text.partition("\n")[0].strip()[:_SHOWN] if readable else None


def explain_unreadable(path: Path) -> str | None:
    """What a file is that is no safetensors file, and how to make a net of it; None where that is not known."""
    try:
        with path.open("rb") as file:
            beginning = file.read(_READ)
        if beginning.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if not any(name.endswith(("/data.pkl", "/archive_format", "serialized_state_dict.pt")) for name in names):
                return "a zip archive, not a net"
        elif not beginning.startswith(_LEGACY_PYTORCH):
            return describe(path.name, beginning)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return f"a PyTorch file; {how_to_convert(path)}"


def how_to_convert(path: Path) -> str:
    """What makes a net of a PyTorch file, as a shell takes it."""
    output = path.with_suffix(".safetensors")
    output = path.with_suffix(".flax.safetensors") if output == path else output
    command = shlex.join(["python", "-m", "convert", str(path), "-o", str(output)])
    return f"{command} makes a net of the ShuffleNetV2 in it"
