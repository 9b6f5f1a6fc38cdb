"""Checkpoints of a run: all that it takes to go on as if nothing had happened.

Each is a folder named by its step, which Orbax writes beside and renames when it is whole, while training goes on.
In it are the train state and a record of plain JSON; the record holds a checksum of the state's bits.
"""

import contextlib
import functools
import logging
import re
import shutil
import textwrap
import time
import warnings
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flax_shufflenet.errors import TrainingError, one_line
from flax_shufflenet.system.dropped_exceptions import add_handler

# Saved in the middle of an epoch too, where it takes longer than this.
_SECONDS_BETWEEN = 600
_SECONDS_OF_LATE_WRITES = 0.5


class Checkpoint(NamedTuple):
    """A state after ``step`` steps, and what ``Checkpoints.save`` was given with it."""

    step: int
    state: Any
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder: the last two, and the best one. Close it, or use it in ``with``.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here: it takes half a second, which a refusal need not wait for.
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        _say_errors_once()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._best_step: int | None = None
        self._saved_at = time.monotonic()
        self._failed = False
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(2), _KeepStep(lambda: self._best_step)]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def path(self, step: int) -> Path:
        """Where the checkpoint after ``step`` steps lies."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """Those that this process finds in the folder, in order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def latest_step(self) -> int | None:
        """The newest one's step; None where there is none."""
        return self._manager.latest_step()

    def restore(
        self, template: Any, check: Callable[[dict[str, Any]], None], say: Callable[[str], None]
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none at all.

        ``template`` is a state of the shapes, dtypes and places to restore to. ``check`` sees the record first, and
        raises a TrainingError for what it finds wrong with it. A damaged checkpoint is told to ``say`` and left out;
        once an older one has been read instead, it is removed: going on from there makes it again.

        Raises:
            TrainingError: there are checkpoints, but none of them can be read.
            OSError: they may not be read, or a damaged one cannot be removed.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                record = self._restore_item(step, "record", self._args.JsonRestore())
                checksum, best_step, run = record["checksum"], record["best_step"], record["run"]
                check(run)
                abstract = jax.tree.map(_shape, template)
                state = self._restore_item(step, "state", self._args.StandardRestore(abstract))
                if _checksum(state) != checksum:
                    raise ValueError("its checksum is wrong")
            except (PermissionError, TrainingError):
                raise
            except Exception as error:  # whatever damage makes the readers stumble over
                damaged.append((step, textwrap.shorten(one_line(error), 100, placeholder=" ...")))
                continue
            for other, reason in damaged:
                say(f"{self.path(other)} is damaged ({reason}): falling back to {self.path(step)}")
                self._manager.delete(other)
            self._best_step = best_step
            return Checkpoint(step, state, run)
        if damaged:
            step, reason = damaged[0]
            raise TrainingError(
                f"no checkpoint in {self.folder} can be read ({step}: {reason}): choose another --out, or start anew "
                "with --force"
            )
        return None

    def _restore_item(self, step: int, name: str, arguments: Any) -> Any:
        return self._manager.restore(step, args=self._args.Composite(**{name: arguments}))[name]

    def due(self) -> bool:
        """Whether the last one was saved so long ago that the next should not wait for the epoch's end."""
        return time.monotonic() - self._saved_at > _SECONDS_BETWEEN

    def save(self, step: int, state: Any, record: dict[str, Any], *, best: bool = False) -> None:
        """Starts to save ``state`` and ``record``, which is plain JSON, once the one before is on disk.

        The state may be donated as soon as this returns. ``best`` says that none before was better: it is kept until
        there is a better one.

        Raises:
            FloatingPointError: the state is not finite; it is not saved.
            TrainingError: this checkpoint or the one before cannot be written.
        """
        check_finite(step, state)
        if best:
            self._best_step = step
        whole = {"run": record, "checksum": _checksum(state), "best_step": self._best_step}
        with self._errors_in_one_line():
            self._manager.save(
                step,
                args=self._args.Composite(state=self._args.StandardSave(state), record=self._args.JsonSave(whole)),
            )
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Until all that was saved is on disk.

        Raises:
            TrainingError: it cannot be written.
        """
        with self._errors_in_one_line():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _errors_in_one_line(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self._failed = True
            raise TrainingError(f"cannot save a checkpoint in {self.folder}: {one_line(error)}") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._manager.close()
        except Exception:  # what failed to be written, save or wait have said
            self._failed = True
        if jax.process_index() == 0:
            if self._failed:
                self._remove_unfinished()
            with contextlib.suppress(OSError):  # there are checkpoints in it
                self.folder.rmdir()

    def _remove_unfinished(self) -> None:
        """Until none has come for a while: where one array cannot be written, TensorStore goes on with the others."""
        empty_since = started = time.monotonic()
        while (now := time.monotonic()) < min(empty_since + _SECONDS_OF_LATE_WRITES, started + 10):
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
                empty_since = now
            time.sleep(0.02)


def check_finite(step: int, state: Any) -> None:
    """Raises:
    FloatingPointError: the state after step ``step`` is not finite.
    """
    floats = (leaf for leaf in jax.tree.leaves(state) if np.issubdtype(leaf.dtype, np.floating))
    if not all(np.isfinite(leaf).all() for leaf in floats):
        raise FloatingPointError(f"the parameters are not finite after step {step}")


def remove(folder: Path) -> None:
    """Removes all checkpoints in a folder, which need not be there, and nothing else.

    Raises:
        OSError: one cannot be removed.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.partition(".")[0].isdigit():
                shutil.rmtree(path)


class _KeepStep:
    """Keeps one checkpoint; ``step`` says which."""

    def __init__(self, step: Callable[[], int | None]) -> None:
        self._step = step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> Sequence[bool]:
        return [checkpoint.step == self._step() for checkpoint in checkpoints]


@functools.cache
def _say_errors_once() -> None:
    """Keeps off the screen, from now on, what is raised anyhow.

    Orbax logs the tracebacks of errors that it also raises. And where one array cannot be read or written, it does not
    wait for the others: asyncio and TensorStore then complain of each, some of them at the very end of the process,
    and Python of the coroutines that never began.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: not re.search("orbax|OCDBT", record.getMessage()))
    add_handler(lambda dropped: str(dropped.exc_value) == "Event loop is closed")
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _checksum(state: Any) -> int:
    return functools.reduce(lambda crc, leaf: zlib.crc32(np.asarray(leaf).tobytes(), crc), jax.tree.leaves(state), 0)
