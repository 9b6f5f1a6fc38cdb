"""A training run, read back from its folder; works while it runs, and without JAX."""

import json
import math
import statistics
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
_NORMAL_QUANTILE = 1.959964  # of 97.5 %: two-sided 95 %


class RunError(ValueError):
    """A folder is no training run; the message names it and says why."""


@dataclass(frozen=True)
class Run:
    """What a run says of itself, and its figures, one record for each finished epoch."""

    folder: Path
    description: dict[str, Any]
    epochs: list[dict[str, Any]]

    @property
    def options(self) -> dict[str, Any]:
        """The command line's options, defaults included."""
        return self.description["config"]

    @property
    def last(self) -> dict[str, Any] | None:
        """The latest epoch's figures; None before the first epoch is done."""
        return self.epochs[-1] if self.epochs else None

    @property
    def best(self) -> dict[str, Any] | None:
        """The figures of the epoch with the best test accuracy, the first of several; None before there is one."""
        return max(self.epochs, key=lambda record: record["test_accuracy"], default=None)

    @property
    def seconds(self) -> float:
        """Of all epochs, training and evaluation; start-up and compilation are not in it."""
        return math.fsum(record["seconds"] for record in self.epochs)

    @property
    def images_per_second(self) -> float | None:
        """While training, the median of the epochs."""
        return statistics.median(record["images_per_second"] for record in self.epochs) if self.epochs else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The epochs that have this figure, and the figure; what was not finite is left out."""
        found = [(record["epoch"], record[key]) for record in self.epochs if record.get(key) is not None]
        return [epoch for epoch, _ in found], [value for _, value in found]


def read_run(folder: Path) -> Run:
    """The run in ``folder``, finished or not.

    Raises:
        RunError: there is no metrics.jsonl that a run has written, or it is damaged.
    """
    path = folder / METRICS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder} is no training run: no {METRICS_FILE} in it") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunError(f"{path} is damaged: it is not text") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            if number < len(lines):  # the last line may be half-written
                raise RunError(f"{path} is damaged: line {number} is not JSON") from None
    if not records or not isinstance(records[0], dict) or not isinstance(records[0].get("config"), dict):
        raise RunError(f"{folder} is no training run: {METRICS_FILE} does not begin with a run's description")
    if type(records[0]["config"].get("epochs")) is not int or not isinstance(records[0].get("versions", {}), dict):
        raise RunError(f"{path} is damaged: line 1 does not say the number of epochs, or the versions, as a run does")
    epochs = {}
    for number, record in enumerate(records, 1):
        if isinstance(record, dict) and record.keys() >= _EPOCH_KEYS:
            _check_figures(record, f"{path} is damaged: line {number}")
            epochs[record["epoch"]] = record
    return Run(folder, records[0], [epochs[epoch] for epoch in sorted(epochs)])


_EPOCH_KEYS = {"epoch", "test_accuracy", "seconds", "images_per_second"}


def _check_figures(record: dict[str, Any], place: str) -> None:
    """An epoch's; those that were not finite are null, which not all can be.

    Raises:
        RunError: one is no number; the message begins with ``place``.
    """
    if type(record["epoch"]) is not int:
        raise RunError(f"{place} has {json.dumps(record['epoch'])} for epoch, which is no whole number")
    for name, value in record.items():
        if type(value) not in (int, float) and not (value is None and name not in _EPOCH_KEYS):
            raise RunError(f"{place} has {textwrap.shorten(json.dumps(value), 40)} for {name}, which is no number")


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share ``right / count``, between 0 and 1 (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    z, share = _NORMAL_QUANTILE, right / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def percent(share: float, digits: int = 2) -> str:
    """For people: 0.5 is 50.00 %."""
    return f"{100 * share:.{digits}f} %"


def points(change: float) -> str:
    """For people: a share that rises by 0.05 changes by +5.00 points."""
    return f"{100 * change:+.2f} points"


def duration(seconds: float) -> str:
    """For people: 45 s, 3 min 5 s, 2 h 7 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
