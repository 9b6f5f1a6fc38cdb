"""What was read of a dataset, kept on disk: decoding CIFAR takes ten seconds, reading the pixels back half of one."""

import hashlib
import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_shufflenet.system import user_cache
from flax_shufflenet.system.files import open_whole


def path_for(name: str, folder: Path) -> Path | None:
    """Where the arrays of a dataset's folder belong; changes with every change to the folder's files. None where there
    is no place for them."""
    cache = user_cache.folder()
    if cache is None:
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    identity = [str(folder.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return cache / f"{name}-{key}.npz"


def read(path: Path | None, names: Collection[str]) -> dict[str, Any] | None:
    """What ``write`` kept there under these names; None where there is nothing, or nothing usable."""
    if path is None:
        return None
    try:
        # Opened here, since numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
        os.utime(path)  # the longest unused are removed first
        return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path | None, arrays: Mapping[str, Any]) -> None:
    """Writes beside ``path`` and renames, so that no other process reads half of it."""
    if path is None:
        return
    try:
        with open_whole(path) as file:
            np.savez(file, **arrays)
    except OSError:
        pass  # a full disk only means that the next run reads all again
    user_cache.prune()
