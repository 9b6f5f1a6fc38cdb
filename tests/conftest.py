"""Says what the tests run on, and keeps float64 possible only where a test asks for it."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers and the commands that they start share the cores; PyTorch's threads, which wait in a loop, would take
    # them from each other. Read when PyTorch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"

# With a limit, JAX locks the cache's folder. It reads the limit at the first program, which may come before a fixture
# could set it; and where entries were written without one, it writes none with one.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**34)

import quick_compiling

from flax_shufflenet.system import garbage

garbage.collect_rarely()

# XLA reads the flags when JAX first asks for its devices; the commands that tests start compile as users' do.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", f"{quick_compiling.XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}")
    import jax
    import torch

    jax.devices()


def pytest_report_header() -> str:
    device = jax.devices()[0]
    return (
        f"JAX {jax.__version__} on {device.device_kind} ({device.platform}), parity at matmul precision 'highest'; "
        f"PyTorch {torch.__version__} on the CPU"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file share fixtures and programs: they go to one worker, where they name no group of their own.

    Those that do compile for the longest, and come first, then the files with slow tests, so that no worker waits for
    the other at the end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.get_closest_marker("xdist_group") is None, item.path not in slow))
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session", autouse=True)
def compiled_programs_are_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cache of compiled programs for all workers and for the commands that tests start, new for each run.

    ``JAX_COMPILATION_CACHE_DIR`` names another, which stays for the next run.
    """
    run = tmp_path_factory.getbasetemp()
    run = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    settings = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(run / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """What a benchmark sets ends with its test: the others took twice as long with two threads a worker."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def unoptimised() -> None:
    """Leaves LLVM's optimisations out: programs are ready in two thirds of the time, and compute the same. The commands
    that tests start have them."""
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimised(unoptimised: None) -> Iterator[None]:
    """For tests of how exact float32 is, which also compile with ``quick_compiling.AS_USERS_DO``: what they compile is
    what users run."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # a jitted function would go on with the program that it has
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def float64() -> Iterator[None]:
    """float64 in JAX, and matrix products in full float32 on accelerators."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def file_size_limit() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A context in which no file can grow beyond so many bytes, which fails as a full disk does."""
    resource = pytest.importorskip("resource")  # not on Windows

    @contextlib.contextmanager
    def limit(size: int) -> Generator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
