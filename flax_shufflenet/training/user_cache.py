"""The user's cache folder: what can be made again, at a cost of seconds, is kept there."""

import os
import warnings
from pathlib import Path

import jax


def folder() -> Path | None:
    """``flax_shufflenet`` in the folder that the system keeps caches in; None where it cannot be written."""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flax_shufflenet"
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home
        return None
    return path if os.access(path, os.W_OK | os.X_OK) else None


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles, and take it from there the next time: a train step compiles for ten seconds.

    JAX's own settings come first (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``). A folder that
    cannot be written only means that nothing is kept.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    cache = folder()
    if jax.config.values["jax_compilation_cache_dir"] is None and cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
