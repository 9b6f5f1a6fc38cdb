"""The user's cache folder: what can be made again, at a cost of seconds, is kept there."""

import os
from pathlib import Path

import jax


def folder() -> Path:
    """``flax_shufflenet`` in the folder that the system keeps caches in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flax_shufflenet"


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles, and take it from there the next time: a train step compiles for ten seconds.

    JAX's own settings come first (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE``). A folder that
    cannot be written only means that nothing is kept.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(folder() / "compiled"))
