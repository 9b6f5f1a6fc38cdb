"""Sums over the steps of one epoch."""

import math
import time
from collections.abc import Callable
from typing import Any, TypedDict

import jax

from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.step import StepMetrics


class Sums(TypedDict):
    """What JSON keeps of an epoch under way: steps done, the sum of their losses, images right, seconds taken."""

    steps: int
    loss: float
    correct: int
    seconds: float


class EpochTotals:
    """Loss, accuracy and speed of an epoch so far; ``sums`` are those of its steps before an interruption."""

    def __init__(self, batch_size: int, epoch: int, epochs: int, sums: Sums | None = None) -> None:
        sums = sums or Sums(steps=0, loss=0.0, correct=0, seconds=0.0)
        self.title = f"epoch {epoch}/{epochs}"
        self._epoch = epoch
        self._batch_size = batch_size
        self._started = time.perf_counter() - sums["seconds"]
        self._steps, self._loss, self._correct = sums["steps"], sums["loss"], sums["correct"]

    def add(self, number: int, metrics: StepMetrics) -> None:
        """Waits for step ``number``, and adds its figures.

        Raises:
            FloatingPointError: its loss is not finite.
        """
        loss, correct = jax.device_get(metrics)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {number} ({self.title})")
        self._steps += 1
        self._loss += float(loss)
        self._correct += int(correct)

    @property
    def sums(self) -> Sums:
        return Sums(steps=self._steps, loss=self._loss, correct=self._correct, seconds=self.seconds)

    @property
    def loss(self) -> float:
        return self._loss / self._steps

    @property
    def accuracy(self) -> float:
        return self._correct / (self._steps * self._batch_size)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def images_per_second(self) -> float:
        return self._steps * self._batch_size / self.seconds

    def finish(
        self, step: int, learning_rate: float, evaluate: Callable[[], Evaluation]
    ) -> tuple[dict[str, Any], Evaluation]:
        """The epoch's line in the metrics, and the test result in it; ``step`` and its ``learning_rate`` are the last.

        The speed is that of training alone; the seconds have the evaluation in them.
        """
        images_per_second = self.images_per_second()
        evaluation = evaluate()
        record = {
            "epoch": self._epoch,
            "step": step,
            "learning_rate": learning_rate,
            "train_loss": self.loss,
            "train_accuracy": self.accuracy,
            "test_loss": evaluation.loss,
            "test_accuracy": evaluation.accuracy,
            "images_per_second": images_per_second,
            "seconds": self.seconds,
        }
        return record, evaluation

    def figures(self) -> str:
        """For the progress bar."""
        return (
            f"{self.title}  loss {self.loss:.3f}  accuracy {self.accuracy:.1%}  "
            f"{self.images_per_second():,.0f} images/s"
        )
