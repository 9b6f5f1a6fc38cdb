"""One contender's process: builds, compiles and runs its program, and times it when it is told to.

Between its turns it waits on a pipe, which costs no CPU.
"""

import os
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import settings
from benchmarks.case import Case, Step
from benchmarks.contenders import CONTENDERS
from flax_shufflenet.system.allocator import give_back_freed_memory

_WARM_UP_STEPS = 3


class Ready(NamedTuple):
    """The first step is done. ``seconds`` is from having weights and data until then: nearly all compilation."""

    seconds: float


class Warm(NamedTuple):
    """What the first few steps gave: losses, or class scores; None for the floor."""

    outcomes: np.ndarray | None


class Turn(NamedTuple):
    """``seconds`` of a step, for the floor of each product; ``peak_bytes`` of the process's memory up to now."""

    seconds: list[float]
    peak_bytes: int


class Failure(NamedTuple):
    """It cannot go on."""

    reason: str


def redirect_output(log: Path) -> None:
    """Sends what this process and its libraries print to a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())


def serve(connection: Connection, contender: str, case: Case, log: Path) -> None:
    """Sends Ready, Warm, and a Turn for each number of seconds that arrives, until None arrives; or a Failure.

    What libraries print goes to ``log``.
    """
    redirect_output(log)
    try:
        settings.pin()
        compile_program = CONTENDERS[contender].program(case)
        started = time.perf_counter()
        steps = compile_program()
        give_back_freed_memory()
        first = [step() for step in steps]
        connection.send(Ready(time.perf_counter() - started))
        later = [[step() for step in steps] for _ in range(_WARM_UP_STEPS - 1)]
        connection.send(Warm(np.array([first, *later]) if len(steps) == 1 else None))
        while (budget := connection.recv()) is not None:
            seconds = [median_seconds(step, budget / len(steps)) for step in steps]
            connection.send(Turn(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    except Exception as error:
        connection.send(Failure(f"{type(error).__name__}: {error}"))


def median_seconds(step: Step, budget: float) -> float:
    """Of as many calls as fill the budget, at least two. One before them does not count: it finds in the caches
    what another contender left there."""
    step()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < budget:
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
