"""The epochs of a run: each goes through its steps, is tested, and leaves a line of metrics and a checkpoint."""

import collections
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.runs.metrics import MetricsWriter
from flax_shufflenet.system.interruption import Interrupted, Interruption
from flax_shufflenet.training import processes
from flax_shufflenet.training.checkpoints import Checkpoints, check_finite
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.description import epoch_line, net_metadata, progress_bar
from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.program import Program
from flax_shufflenet.training.step import StepMetrics, TrainState
from flax_shufflenet.training.totals import EpochTotals, Sums
from flax_shufflenet.weights import save

# Metrics are fetched this many steps late, so that the device always has the next steps at hand.
_STEPS_AHEAD = 4


class Start(NamedTuple):
    """Where a run starts from: the steps done, and what they left; ``sums`` are those of an epoch under way."""

    step: int
    state: TrainState
    identity: dict[str, Any]
    records: list[dict[str, Any]]
    sums: Sums | None = None


class Epochs:
    """Those that are left of a run. ``best_file`` gets the net of the best epoch."""

    def __init__(
        self,
        config: Config,
        dataset: AnyDataset,
        program: Program,
        start: Start,
        saved: Checkpoints,
        metrics: MetricsWriter,
        interruption: Interruption,
        best_file: Path,
    ) -> None:
        self._config, self._dataset, self._program = config, dataset, program
        self._identity, self._sums = start.identity, start.sums
        self._saved, self._metrics, self._interruption = saved, metrics, interruption
        self._best_file = best_file
        self._step, self._state = start.step, start.state
        self._best = max((evaluation_of(record).accuracy for record in metrics.records[1:]), default=-math.inf)

    def run(self, console: Console) -> TrainState:
        """Returns the last state, which is on disk.

        Raises:
            FloatingPointError: a loss or a parameter is not finite.
            Interrupted: after the state was saved.
        """
        program = self._program
        with progress_bar(console) as progress:
            figures = {"figures": "first step", "best": self._best}
            bar = progress.add_task("", total=program.total_steps, completed=self._step, **figures)
            show = functools.partial(progress.update, bar)
            for epoch in range(self._step // program.steps_per_epoch + 1, self._config.epochs + 1):
                totals = EpochTotals(self._config.batch_size, epoch, self._config.epochs, self._sums)
                self._train(epoch, totals, show)
                progress.console.print(self._end(epoch, totals))
                show(best=self._best)
                if epoch < self._config.epochs:
                    self._end_if(_agreed(self._interruption.signal_number))
            self._saved.wait()
        return self._state

    def _train(self, epoch: int, totals: EpochTotals, show: functools.partial[None]) -> None:
        """Takes the epoch's steps that are left."""
        program = self._program
        last = epoch * program.steps_per_epoch
        order = program.order(epoch)
        pending: collections.deque[tuple[int, StepMetrics]] = collections.deque()
        for number in range(self._step + 1, last + 1):
            self._state, step_metrics = program.step(self._state, order)
            self._step = number
            pending.append((number, step_metrics))
            signal_number = due = None
            if processes.may_ask(number):
                signal_number, due = _agreed(self._interruption.signal_number), _agreed(self._saved.due())
            pause = bool(signal_number or due)
            while len(pending) > (0 if pause or number == last else _STEPS_AHEAD):
                totals.add(*pending.popleft())
                show(advance=1, figures=totals.figures())
            # The last step is saved together with the evaluation.
            if pause and number < last:
                self._save(totals.sums)
                self._end_if(signal_number)

    def _end(self, epoch: int, totals: EpochTotals) -> str:
        """Tests the net, and keeps what the epoch left; returns its line for people."""
        config, program = self._config, self._program
        check_finite(self._step, self._state)  # before anything of this epoch is kept
        learning_rate = program.learning_rate(self._step)
        record, evaluation = totals.finish(self._step, learning_rate, functools.partial(program.evaluate, self._state))
        if config.ema:
            raw = program.evaluate_raw(self._state)
            record |= {"raw_test_loss": raw.loss, "raw_test_accuracy": raw.accuracy}
        self._metrics.write(record)
        better = evaluation.accuracy > self._best
        if better and processes.is_first_process():
            # Before the checkpoint: once that is there, this epoch is never run again.
            metadata = net_metadata(config, self._dataset, evaluation, epoch)
            save(program.net(self._state), self._best_file, metadata)
        self._best = max(self._best, evaluation.accuracy)
        self._save(best=better)
        self._sums = None
        return epoch_line(record, config.epochs)

    def _save(self, sums: Sums | None = None, *, best: bool = False) -> None:
        record = {
            "identity": self._identity,
            "metrics": list(self._metrics.records),
            "sums": sums,
            "feed": self._program.feed.state(),
        }
        self._saved.save(self._step, self._state, record, best=best)

    def _end_if(self, signal_number: int | None) -> None:
        if not signal_number:
            return
        self._saved.wait()
        raise Interrupted(
            signal_number,
            f"interrupted after {self._step} of {self._program.total_steps} steps, which are saved in "
            f"{self._saved.path(self._step)}; the same command goes on from there, if it is given without --force",
        )


def _agreed(value: int | None) -> int:
    """The highest that a process has, for all of them; 0 for none."""
    return processes.highest(value or 0)


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """The test result in an epoch's record, where JSON has null for what is not finite."""
    values = (record["test_loss"], record["test_accuracy"])
    return Evaluation(*(math.nan if value is None else value for value in values))
