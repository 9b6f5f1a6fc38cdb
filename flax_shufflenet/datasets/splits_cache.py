"""Decoded images, kept on disk: decoding takes ten seconds, reading them back half of one."""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from flax_shufflenet.system import user_cache
from flax_shufflenet.system.files import open_whole


class Splits(NamedTuple):
    """Training and test images, and the index of each one's class."""

    train_images: UInt8[np.ndarray, "train h w 3"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test h w 3"]
    test_labels: Int32[np.ndarray, " test"]


def path_for(name: str, folder: Path) -> Path | None:
    """Where the decoded images of a dataset's folder belong; changes with every change to the folder's files. None
    where there is no place for them."""
    cache = user_cache.folder()
    if cache is None:
        return None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    identity = [str(folder.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return cache / f"{name}-{key}.npz"


def read(path: Path | None) -> Splits | None:
    """What ``write`` kept there; None where there is nothing, or nothing usable."""
    if path is None:
        return None
    try:
        # Opened here, since numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            splits = Splits(**{name: arrays[name] for name in Splits._fields})
        os.utime(path)  # the longest unused are removed first
        return splits
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(path: Path | None, splits: Splits) -> None:
    """Writes beside ``path`` and renames, so that no other process reads half of it."""
    if path is None:
        return
    try:
        with open_whole(path) as file:
            np.savez(
                file,
                train_images=splits.train_images,
                train_labels=splits.train_labels,
                test_images=splits.test_images,
                test_labels=splits.test_labels,
            )
    except OSError:
        pass  # a full disk only means that the next run decodes again
    user_cache.prune()
