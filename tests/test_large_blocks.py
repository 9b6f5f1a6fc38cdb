"""Large blocks of memory are kept, and are whole whatever is done with them: in processes that have the allocator."""

import subprocess
import sys

import pytest

from flax_shufflenet.system.allocator import allocator_environment

ENVIRONMENT = allocator_environment({})
pytestmark = pytest.mark.skipif(ENVIRONMENT is None, reason="large blocks are kept under Linux with glibc, where built")

PRELUDE = """
import ctypes, os, threading

libc = ctypes.CDLL(None)
libc.free.argtypes = [ctypes.c_void_p]
libc.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.realloc.restype = ctypes.c_void_p
libc.malloc_usable_size.argtypes = [ctypes.c_void_p]
libc.malloc_usable_size.restype = ctypes.c_size_t
MB = 1 << 20

def take(size, alignment=64):
    start = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(start), ctypes.c_size_t(alignment), ctypes.c_size_t(size)) == 0
    assert start.value % alignment == 0
    return start.value

def fill(start, size, byte):
    ctypes.memset(start, byte, size)

def holds(start, size, byte):
    return ctypes.string_at(start, size) == bytes([byte]) * size

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


def run(code):
    command = [sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_freed_block_is_the_next_one_of_about_its_size():
    run("""
first = take(100 * MB)
fill(first, 100 * MB, 7)
libc.free(first)
small = [take(96) for _ in range(100)]  # in glibc's own heap they would lie where the block was
assert take(100 * MB) == first
libc.free(first)
assert take(60 * MB) == first
other = take(100 * MB)
libc.free(first)
assert take(40 * MB) not in (first, other)  # most of it would lie idle
""")


def test_blocks_in_use_do_not_overlap_and_keep_what_is_written():
    run("""
sizes = [1, 4096, 4 * MB - 1, 4 * MB, 4 * MB + 1, 7 * MB, 32 * MB]
blocks = [(take(size, alignment), size) for size in sizes for alignment in (8, 64, 4096, 2 * MB, 4 * MB)]
for number, (start, size) in enumerate(blocks):
    fill(start, size, number)
assert all(holds(start, size, number) for number, (start, size) in enumerate(blocks))
assert all(libc.malloc_usable_size(start) >= size for start, size in blocks)
for start, _ in blocks:
    libc.free(start)
assert libc.posix_memalign(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(24), ctypes.c_size_t(8 * MB)) == 22
""")


def test_a_block_that_is_made_larger_or_smaller_keeps_its_contents():
    run("""
for size in (9 * MB, 5 * MB, 100):
    start = take(8 * MB)
    fill(start, 8 * MB, 5)
    moved = libc.realloc(start, size)
    assert holds(moved, min(size, 8 * MB), 5)
    assert take(8 * MB) == start  # it was freed
    libc.free(start)
    libc.free(moved)
""")


def test_what_is_kept_returns_to_the_system_when_asked_and_when_it_does_not_serve():
    run("""
before = resident()
for give_back in (lambda: libc.malloc_trim(0), lambda: take(250 * MB)):
    start = take(100 * MB)
    fill(start, 100 * MB, 1)
    libc.free(start)
    assert resident() > before + 90 * MB
    give_back()
    assert resident() < before + 10 * MB
""")


def test_threads_and_forked_processes_share_them():
    run("""
def work(byte):
    for turn in range(50):
        size = (4 + (byte + turn) % 5) * MB
        start = take(size)
        fill(start, 1000, byte)
        fill(start + size - 1000, 1000, byte)
        assert holds(start, 1000, byte) and holds(start + size - 1000, 1000, byte)
        libc.free(start)

failed = []
threading.excepthook = failed.append
threads = [threading.Thread(target=work, args=(byte,)) for byte in range(1, 9)]
for thread in threads:
    thread.start()
child = os.fork()
if child == 0:
    work(100)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for thread in threads:
    thread.join()
assert not failed
""")


def test_what_was_never_given_is_not_freed():
    code = PRELUDE + "libc.free(take(8 * MB) + 4096)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, timeout=60).returncode == -6


def test_whoever_chooses_an_allocator_keeps_it():
    assert ENVIRONMENT is not None
    assert ENVIRONMENT.keys() == {"LD_PRELOAD"}
    assert allocator_environment({"HOME": "home"}) == ENVIRONMENT | {"HOME": "home"}
    for chosen in (ENVIRONMENT["LD_PRELOAD"], "libjemalloc.so.2", ""):
        assert allocator_environment({"LD_PRELOAD": chosen}) is None
