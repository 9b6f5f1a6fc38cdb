"""Several processes of one run, on one machine or many: they find each other, agree, and end together."""

import contextlib
import os
import socket
import sys
import threading
import zlib
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # for the client of the coordinator, which the public module keeps to itself
from jax.experimental import multihost_utils

from flax_shufflenet.errors import TrainingError, one_line
from flax_shufflenet.training.config import AUTO, Config

# Seconds after which a process that was killed is taken for dead, and JAX ends the others.
_LONGEST_SILENCE: int = 30

_ALL_HERE, _LONGEST_WAIT = "flax_shufflenet/all_here", 10**9  # milliseconds

# Where a process says that it ends early. The others look every so many seconds, and have so many to end by themselves.
_ENDED_EARLY = "flax_shufflenet/ended_early"
_SECONDS_BETWEEN_LOOKS, _SECONDS_OF_GRACE = 1, 10

_STEPS_BETWEEN_QUESTIONS = 20


def join(config: Config) -> None:
    """Joins the other processes of a run, where ``config`` says that there are some; JAX must not be in use yet.

    Raises:
        TrainingError: no cluster that JAX knows, or the other processes cannot be reached.
    """
    if config.coordinator is None or jax.distributed.is_initialized():
        return
    options: dict[str, Any] = {}
    if config.coordinator != AUTO:
        options = {
            "coordinator_address": config.coordinator,
            "num_processes": config.num_processes,
            "process_id": config.process_id,
            "cluster_detection_method": "deactivate",
        }
        if config.process_id == 0:
            _check_port_is_free(config.coordinator)
    # It would take SIGTERM for itself, which the loop listens to.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=_LONGEST_SILENCE)
    except ValueError:  # JAX asks for its own arguments
        raise TrainingError(
            "--coordinator auto: JAX finds no cluster here (it knows Slurm, Open MPI, Cloud TPU and GKE): "
            "give --coordinator HOST:PORT, --num_processes and --process_id"
        ) from None
    except RuntimeError as error:
        raise TrainingError(f"--coordinator {config.coordinator}: {one_line(error)}") from None


def _check_port_is_free(coordinator: str) -> None:
    # JAX would end the process with a stack trace.
    port = int(coordinator.rpartition(":")[2])
    try:
        with socket.create_server(("", port)):
            pass
    except OSError as error:
        raise TrainingError(f"--coordinator {coordinator}: port {port} cannot be used here: {error.strerror}") from None


def is_first_process() -> bool:
    """Whether this is process 0, the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def only_first_process_prints() -> Generator[None]:
    """What other processes write to standard output is lost; errors are not."""
    if is_first_process():
        yield
    else:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield


@contextlib.contextmanager
def end_together() -> Generator[None]:
    """Where what is done inside ends early in one process, interrupted or with an error, the others end, too.

    They may be waiting for it within JAX, where no exception reaches them: a thread says why and ends the process with
    exit code 1. Otherwise they would wait for minutes, and so would the one that ends, until they have all left.
    """
    client = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        yield
        return
    over = threading.Event()
    threading.Thread(target=_end_with_others, args=(client, over), daemon=True).start()
    try:
        yield
    except BaseException as error:
        reason = f"process {jax.process_index()} has ended ({one_line(error)})"
        with contextlib.suppress(Exception):  # the others may have said so first, or be gone with the coordinator
            client.key_value_set(_ENDED_EARLY, reason)
        raise
    finally:
        over.set()


def _end_with_others(client: Any, over: threading.Event) -> None:
    while not over.wait(_SECONDS_BETWEEN_LOOKS):
        try:
            reason = client.key_value_try_get(_ENDED_EARLY)
        except Exception:  # nobody has said anything
            continue
        if over.wait(_SECONDS_OF_GRACE):
            return
        print(f"{reason}, which this process cannot go on without", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()  # the one that ended waits for it
        os._exit(1)


@contextlib.contextmanager
def all_or_none() -> Generator[None]:
    """What is done inside has to succeed in all processes; where it fails in one, none goes on to wait for it.

    Raises:
        TrainingError: it failed in another process.
    """
    try:
        yield
    except Exception:
        _from_all_processes(0)
        raise
    failed = np.flatnonzero(_from_all_processes(1) == 0)
    if failed.size:
        raise TrainingError(f"process {failed[0]} cannot go on; its own message says why")


def wait_for_all() -> None:
    """Until all processes are here, however long that takes; at a program's end JAX waits for five minutes at most."""
    client = distributed.global_state.client
    if jax.process_count() > 1 and client is not None:
        client.wait_at_barrier(_ALL_HERE, _LONGEST_WAIT)


def check_same_everywhere(value: bytes, complaint: str) -> None:
    """Processes that compute different things wait for each other for ever, or train on nonsense.

    Raises:
        TrainingError: another process has another ``value`` than process 0; "process 1" and ``complaint`` say so.
    """
    checksums = _from_all_processes(zlib.crc32(value))
    different = np.flatnonzero(checksums != checksums[0])
    if different.size:
        raise TrainingError(f"process {different[0]} {complaint}")


def may_ask(step: int) -> bool:
    """Whether it is time for ``highest`` after this step: asking other processes holds all of them up."""
    return jax.process_count() == 1 or step % _STEPS_BETWEEN_QUESTIONS == 0


def highest(number: int) -> int:
    """The highest of the numbers, from 0, that all processes come with; they have to come at the same step."""
    return int(_from_all_processes(number).max())


def _from_all_processes(value: int) -> np.ndarray:
    if jax.process_count() == 1:
        return np.array([value])
    return np.asarray(multihost_utils.process_allgather(np.array(value, np.uint32))).reshape(-1)
