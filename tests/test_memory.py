"""Memory is counted as the process may use it."""

import math
import os

import pytest

from flax_shufflenet.system import memory


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {}, math.inf),
        ("0::/", {"memory.max": "max\n"}, math.inf),
        ("0::/a/b", {"a/memory.max": "2000000\n", "a/b/memory.max": "max\n"}, 2e6),
        ("4:memory:/m\n1:cpu:/c", {"memory/m/memory.limit_in_bytes": "3000000\n"}, 3e6),
        ("1:cpu:/c", {"cpu/c/memory.limit_in_bytes": "3000000\n"}, math.inf),
        ("0::/", {"memory.max": "damaged"}, math.inf),
    ],
)
def test_a_containers_memory_is_read_from_its_cgroup(tmp_path, groups, files, limit):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()} | {"proc/self/cgroup": groups}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.cgroup_limit(tmp_path) == limit


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="another system")
def test_it_is_at_most_the_machines():
    assert 0 < memory.total() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
