"""Runs contenders against each other: each in a process of its own, taking turns, so that what else the machine
does hits all of them alike."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks import settings
from benchmarks.case import Case
from benchmarks.contenders import CONTENDERS, ENGINES
from benchmarks.worker import Failure, Ready, Turn, Warm, redirect_output, serve

_TURN_SECONDS = 0.5
_SPAWN = multiprocessing.get_context("spawn")

Reply = TypeVar("Reply", Ready, Warm, Turn)


class BenchmarkError(Exception):
    """A measurement that cannot be had; the message is one line."""


@dataclasses.dataclass
class Result:
    """What was measured of one contender at one case."""

    contender: str
    case: Case
    startup_seconds: float
    """From the start of its process to the end of its first step."""
    compile_seconds: float
    """The first step's time, compilation included, without that of a later step."""
    peak_bytes: int
    samples: list[list[float]]
    """For each round: a step's seconds, or for the floor those of each product."""

    def seconds(self) -> list[float]:
        """A step's time in each round."""
        return [sum(sample) for sample in self.samples]


class _Entrant:
    """A contender's running process."""

    def __init__(self, contender: str, case: Case, log: Path) -> None:
        self.contender, self.case, self._log = contender, case, log
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(theirs, contender, case, log))
        self._started = time.perf_counter()
        self._process.start()
        theirs.close()

    def warm_up(self) -> tuple[Result, np.ndarray | None]:
        """Its result, as yet without samples, and what its first steps gave."""
        ready = self._receive(Ready)
        startup = time.perf_counter() - self._started
        outcomes = self._receive(Warm).outcomes
        turn = self.turn()
        compilation = max(0.0, ready.seconds - sum(turn.seconds))
        return Result(self.contender, self.case, startup, compilation, turn.peak_bytes, []), outcomes

    def _receive(self, kind: type[Reply]) -> Reply:
        try:
            reply = self._connection.recv()
        except EOFError:
            lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
            reply = Failure(f"its process died: {' '.join(lines[-2:]).strip() or 'without a word'}")
        if isinstance(reply, Failure):
            raise BenchmarkError(f"{self.contender} ({self.case}): {' '.join(reply.reason.split())}")
        assert isinstance(reply, kind)
        return reply

    def turn(self) -> Turn:
        self._connection.send(_TURN_SECONDS)
        return self._receive(Turn)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(10)
        self._process.kill()
        self._process.join()


def race(entries: Sequence[tuple[str, Case]], rounds: int, folder: Path, say: Callable[[str], None]) -> list[Result]:
    """Measures contenders at their cases, all in turn in each of the rounds.

    They start one after the other. A net whose first steps give something else than the first net's at the same
    case is an error: it would not be the same work.

    Raises:
        BenchmarkError: a contender fails, or computes something else.
    """
    entrants: list[_Entrant] = []
    results: list[Result] = []
    expected: dict[Case, tuple[str, np.ndarray]] = {}
    with contextlib.ExitStack() as stack, settings.environment(settings.worker_environment(folder)):
        _prepare(entries, folder / "nets.log")
        for number, (contender, case) in enumerate(entries):
            entrant = _Entrant(contender, case, folder / f"worker_{number}.log")
            stack.callback(entrant.stop)
            result, outcomes = entrant.warm_up()
            say(f"{CONTENDERS[contender].title} ({case}): first step after {result.startup_seconds:.1f} s")
            if outcomes is not None:
                first, values = expected.setdefault(case, (contender, outcomes))
                _compare(contender, outcomes, first, values)
            entrants.append(entrant)
            results.append(result)
        for number in range(rounds):
            for entrant, result in zip(entrants, results, strict=True):
                turn = entrant.turn()
                result.samples.append(turn.seconds)
                result.peak_bytes = turn.peak_bytes
            say(f"round {number + 1} of {rounds} done")
    return results


def _prepare(entries: Sequence[tuple[str, Case]], log: Path) -> None:
    """Writes the nets' files, in a process of its own: this one stays free of PyTorch and JAX."""
    cases = {case: any(name in ENGINES for name, other in entries if other == case) for _, case in entries}
    with concurrent.futures.ProcessPoolExecutor(1, _SPAWN, redirect_output, (log,)) as pool:
        for case, onnx in cases.items():
            pool.submit(_write_nets, case, onnx).result()


def _write_nets(case: Case, onnx: bool) -> None:
    from benchmarks import nets

    nets.write(case, onnx)


def _compare(contender: str, outcomes: np.ndarray, first: str, expected: np.ndarray) -> None:
    difference = float(np.abs(outcomes - expected).max() / np.abs(expected).max())
    if not difference < max(CONTENDERS[name].tolerance for name in (contender, first)):
        raise BenchmarkError(f"{contender} computes something else than {first}: relative difference {difference:.1e}")
