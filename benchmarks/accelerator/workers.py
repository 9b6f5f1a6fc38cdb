"""Processes that hold programs on the accelerator and time them when told to, one at a time.

JAX and PyTorch, and two ways to compile with PyTorch, are kept in processes of their own: each has the device's
memory to itself between its turns, and what one keeps cached is not charged to another.
"""

import contextlib
import importlib
import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from benchmarks.worker import redirect_output

_SPAWN = multiprocessing.get_context("spawn")

# torch.compile takes a minute for a train step where others compile beside it.
_LONGEST_CALL_SECONDS = 180


class WorkerError(Exception):
    """What was asked of a worker failed; the message is one line."""


class Program(Protocol):
    """Something on the device that can be repeated. ``run(n)`` returns after the n-th is done on the device."""

    def run(self, count: int) -> Any: ...


class Worker:
    """A process that runs the functions of one module, such as ``benchmarks.accelerator.jax_programs``."""

    def __init__(self, module: str, log: Path) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._log = log
        self._process = _SPAWN.Process(target=_serve, args=(theirs, module, log), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        """What the function returns.

        Raises:
            WorkerError: it failed, its process died, or it took longer than three minutes.
        """
        try:
            self._connection.send((function, arguments, options))
            if not self._connection.poll(_LONGEST_CALL_SECONDS):
                self._process.kill()
                raise WorkerError(f"no answer in {_LONGEST_CALL_SECONDS} s")
            failed, value = self._connection.recv()
        except (EOFError, OSError):
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:] if self._log.exists() else []
            raise WorkerError(f"its process died: {' '.join(last) or 'without a word'}") from None
        if failed:
            raise WorkerError(value)
        return value

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(5)
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, module: str, log: Path) -> None:
    redirect_output(log)
    while (request := connection.recv()) is not None:
        function, arguments, options = request
        try:
            value = getattr(importlib.import_module(module), function)(*arguments, **options)
            connection.send((False, value))
        except Exception as error:
            traceback.print_exc()
            connection.send((True, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def seconds_each(program: Program, budget: float) -> float:
    """The time of one repetition, from as many as fill ``budget`` seconds (at least 3), started one after the other
    and waited for at the end. Two before them do not count."""
    program.run(2)
    count = max(3, min(2000, int(budget / max(_timed(program.run, 3) / 3, 1e-7))))
    return _timed(program.run, count) / count


def _timed(run: Callable[[int], Any], count: int) -> float:
    started = time.perf_counter()
    run(count)
    return time.perf_counter() - started
