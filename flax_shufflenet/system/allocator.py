"""Large blocks of memory that stay with the process when they are freed, for XLA's CPU client.

XLA takes its temporaries, hundreds of megabytes, anew at each call. By default glibc maps them each time, and the
kernel zeroes them in pages of 4 kB: up to 40 % of a train step. ``large_blocks.c`` keeps them, in pages of 2 MB.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which large blocks are kept; None where they already are, or cannot be.

    Whoever sets ``LD_PRELOAD``, to another allocator or to nothing, has made a choice, and it stays.
    """
    library = _library()
    if library is None or "LD_PRELOAD" in environment:
        return None
    return {**environment, "LD_PRELOAD": library}


def restart_with_fast_malloc() -> None:
    """Starts the running program again, as the same process, with large blocks kept, where that can be done.

    An allocator is chosen when a process starts. Call it before any work is done: nothing of it is kept.
    """
    environment = allocator_environment(os.environ)
    if environment is None or not sys.executable:
        return
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it is closed
        stream.flush()
    with contextlib.suppress(OSError):  # the interpreter may be started no more: it goes on as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def begin_steps_one_by_one() -> None:
    """From now on a step on CPU begins when the one before has freed its block, so that one block is enough. JAX may
    not be in use yet."""
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def give_back_freed_memory() -> None:
    """Returns to the system what compiling took and freed; otherwise it is kept beside what the steps take."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _library() -> str | None:
    """The file that ``large_blocks.c`` was built to; None where it was not, or cannot be loaded."""
    if not _is_glibc():
        return None
    path = Path(__file__).with_name("_large_blocks.so")
    separators = set(" :")  # of the names in LD_PRELOAD
    return str(path) if path.exists() and not set(str(path)) & separators else None


def _is_glibc() -> bool:
    try:
        return sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except ValueError:
        return False
