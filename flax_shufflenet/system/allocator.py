"""glibc's allocator, set up for the memory that XLA's CPU client takes and gives back at every step.

XLA takes its temporaries, hundreds of megabytes, from malloc at each call. By default glibc maps them anew each time,
and the kernel zeroes them in pages of 4 kB: up to 40 % of a train step. Kept from step to step, in pages of 2 MB, they
cost nothing.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_NEVER = str(1 << 40)

_TUNABLES = {
    "glibc.malloc.hugetlb": "1",
    # One heap that grows: XLA asks from changing threads, and each would keep its own.
    "glibc.malloc.arena_max": "1",
    "glibc.malloc.mmap_threshold": _NEVER,
    "glibc.malloc.trim_threshold": _NEVER,
}


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which glibc keeps freed memory, in huge pages; None where it already does, or cannot.

    Whoever sets ``glibc.malloc.hugetlb`` has made a choice, and it stays.
    """
    given = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in given or not _supported():
        return None
    ours = [f"{name}={value}" for name, value in _TUNABLES.items() if name not in given]
    return {**environment, "GLIBC_TUNABLES": ":".join(filter(None, (given, *ours)))}


def restart_with_fast_malloc() -> None:
    """Starts the running program again, as the same process, with these settings, where they help.

    glibc reads them only when a process starts; what ``mallopt`` can set later leaves the heaps of threads that run
    already, and those are what XLA uses. Call it before any work is done: nothing of it is kept.
    """
    environment = allocator_environment(os.environ)
    if environment is None or not sys.executable:
        return
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it is closed
        stream.flush()
    with contextlib.suppress(OSError):  # the interpreter may be started no more: it goes on as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def give_back_freed_memory() -> None:
    """Returns to the system what compiling took and freed; otherwise it is kept beside what the steps take."""
    if sys.platform == "linux" and _glibc_version() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def _supported() -> bool:
    """Whether this is Linux with a glibc that knows the tunables (2.35), and the kernel has huge pages on offer."""
    if sys.platform != "linux":
        return False
    try:
        version = _glibc_version()
        return version is not None and version >= (2, 35) and "[never]" not in _HUGE_PAGES.read_text()
    except OSError:  # no such kernel setting
        return False


def _glibc_version() -> tuple[int, int] | None:
    """For instance (2, 36); None with another C library."""
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor, *_ = map(int, version.split("."))
        return (major, minor) if library == "glibc" else None
    except ValueError:
        return None
