"""The user's cache folder: what can be made again, at a cost of seconds, is kept there."""

import contextlib
import os
import warnings
from pathlib import Path

import jax

_LARGEST = 2 * 10**9  # bytes


def folder() -> Path | None:
    """``flax_shufflenet`` in the folder that the system keeps caches in; None where it cannot be written."""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flax_shufflenet"
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None


def prune(largest: int = _LARGEST) -> None:
    """Removes what was not used for the longest time, until no more than ``largest`` bytes are left."""
    cache = folder()
    if cache is None:
        return
    found = []
    for path in cache.rglob("*"):
        with contextlib.suppress(OSError):  # another process has just removed it
            status = path.lstat()
            if not path.is_dir():
                # Some file systems note no time of reading, or only one a day.
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left <= largest:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            left -= size


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles, and take it from there the next time: a train step compiles for ten seconds.

    JAX's own settings come first (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``). A folder that
    cannot be written only means that nothing is kept. Of what was kept before, no more than 2 GB stay.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    cache = folder()
    if jax.config.values["jax_compilation_cache_dir"] is None and cache is not None:
        prune()
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
