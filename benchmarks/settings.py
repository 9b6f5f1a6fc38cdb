"""Threads and memory: the same for every contender, set in the environment that its process starts with."""

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from flax_shufflenet.system.allocator import allocator_environment

THREADS = 2
RECORDED = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
"""What of the environment is worth keeping with the figures."""


def worker_environment(folder: Path) -> dict[str, str]:
    """Large blocks of freed memory are kept, in huge pages, rather than given back to the kernel at every step: that
    is worth a large part of a step to JAX, and may not be an advantage that the others do not have.

    ``folder`` is where torch.compile keeps what it compiled; an empty one makes it compile.
    """
    return dict(allocator_environment(os.environ) or os.environ) | {
        "OMP_NUM_THREADS": str(THREADS),
        "MKL_NUM_THREADS": str(THREADS),
        "OPENBLAS_NUM_THREADS": str(THREADS),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Generator[None]:
    """Processes that are started inside have this environment."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def pin() -> None:
    """Keeps this process on as many cores as it has threads: XLA has no setting of its own for that."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
