"""CPUs are counted as the process may use them."""

import math
import os
import subprocess
import sys

import pytest

from flax_shufflenet.system import cpus


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        ("0::/on/the/host", {"cpu.max": "50000 100000\n"}, 0.5),
        ("4:memory:/m\n1:cpu,cpuacct:/c", {"cpu,cpuacct/c/cpu.cfs_quota_us": "300000\n"}, math.inf),
        (
            "1:cpu:/c\n0::/",
            {
                "cpu/c/cpu.cfs_quota_us": "300000\n",
                "cpu/c/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
            },
            3,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("0::/", {"cpu.max": "damaged"}, math.inf),
        ("damaged", {}, math.inf),
    ],
)
def test_a_containers_share_is_read_from_its_cgroup(tmp_path, groups, files, limit):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {"proc/self/cgroup": groups}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.cgroup_limit(tmp_path) == limit


def test_a_system_without_cgroups_sets_no_limit(tmp_path):
    assert cpus.cgroup_limit(tmp_path) == math.inf


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to CPUs")
def test_a_process_bound_to_one_cpu_counts_one():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from flax_shufflenet.system import cpus; print(cpus.available())"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "1\n"
    installed = os.cpu_count()
    assert installed is not None
    assert 1 <= cpus.available() <= installed
