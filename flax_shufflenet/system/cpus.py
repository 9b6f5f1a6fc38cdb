"""How many CPUs this process may use."""

import contextlib
import math
import os
import sys
from pathlib import Path

from flax_shufflenet.system import cgroups


def available() -> int:
    """At least 1: those that the process may run on, and no more than its container or service has the time of."""
    if sys.version_info >= (3, 13):
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    return max(1, math.ceil(min(count or 1, cgroup_limit())))


def cgroup_limit(root: Path = Path("/")) -> float:
    """The CPUs that Linux gives the process's cgroup and those around it the time of; infinite where it sets no limit.

    ``root`` is where the system's files lie. https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu and, for version
    1, https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    return min((_limit(folder) for folder in cgroups.folders("cpu", root)), default=math.inf)


def _limit(folder: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (float(word) for name in names for word in (folder / name).read_text().split())
            if quota > 0 and period > 0:  # version 1 has -1, version 2 the word max, where there is no limit
                return quota / period
    return math.inf
