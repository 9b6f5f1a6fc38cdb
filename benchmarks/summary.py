"""From samples to the figures that are quoted."""

import dataclasses
import statistics
from collections.abc import Sequence

from benchmarks import floor
from benchmarks.case import Case
from benchmarks.contenders import CONTENDERS, FLOORS, PROJECT
from benchmarks.harness import Result


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender at one case."""

    contender: str
    case: Case
    seconds: float
    """A step's, the median over the rounds."""
    fastest: float
    slowest: float
    ratio: float | None
    """To this project's net at the same case; None where that did not take part."""
    floor_ratio: float | None
    """To the matrix products alone; None where they were not timed."""
    compile_seconds: float
    startup_seconds: float
    peak_bytes: int

    @property
    def title(self) -> str:
        return CONTENDERS[self.contender].title

    @property
    def milliseconds_per_image(self) -> float:
        return 1000 * self.seconds / self.case.batch


def paired_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the rounds' own ratios: what slows down a whole round does not move it."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def floor_seconds(results: Sequence[Result], case: Case) -> float | None:
    """The matrix products' time for a step of this case, where they were timed."""
    samples = [result.samples for result in results if result.contender in FLOORS and result.case == case]
    return floor.seconds(case, samples) if samples else None


def summarise(results: Sequence[Result]) -> list[Row]:
    """A row for each net, in the order in which they ran."""
    rows = []
    references = {result.case: result.seconds() for result in results if result.contender == PROJECT}
    for result in results:
        if result.contender in FLOORS:
            continue
        seconds = result.seconds()
        median = statistics.median(seconds)
        reference = references.get(result.case)
        least = floor_seconds(results, result.case)
        rows.append(
            Row(
                result.contender,
                result.case,
                median,
                min(seconds),
                max(seconds),
                paired_ratio(seconds, reference) if reference else None,
                median / least if least else None,
                result.compile_seconds,
                result.startup_seconds,
                result.peak_bytes,
            )
        )
    return rows
