"""How much memory there is for this process."""

import contextlib
import math
import os
from pathlib import Path

from flax_shufflenet.system import cgroups


def total() -> float:
    """Bytes of the machine's memory, and no more than its container or service has; infinite where nothing says."""
    return min(_physical(), cgroup_limit())


def _physical() -> float:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # another system
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        if pages > 0 and size > 0:
            return float(pages * size)
    return math.inf


def cgroup_limit(root: Path = Path("/")) -> float:
    """The bytes that Linux gives the process's cgroup and those around it; infinite where it sets no limit.

    ``root`` is where the system's files lie. https://docs.kernel.org/admin-guide/cgroup-v2.html#memory and, for version
    1, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    return min((_limit(folder) for folder in cgroups.folders("memory", root)), default=math.inf)


def _limit(folder: Path) -> float:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            return float((folder / name).read_text())
    return math.inf
