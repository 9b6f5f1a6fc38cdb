"""The figures as a bar chart."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import FUSED, PROJECT
from benchmarks.harness import Result
from benchmarks.summary import floor_seconds, summarise

_CHARACTERS_PER_PANEL = 92
_OURS, _OTHERS, _FLOOR = "#d1495b", "#8d99ae", "#2b2d42"


def save(results: Sequence[Result], heading: str, path: Path) -> None:
    """One panel for each case; a bar's label says the time, and its ratio to this project's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = list(dict.fromkeys(result.case for result in results))
    columns = min(len(cases), 2) if len(cases) % 3 else 3
    lines = -(-len(cases) // columns)
    tallest = max(sum(result.case == case for result in results) for case in cases)
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.6 * columns, (1.1 + 0.36 * tallest) * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases, strict=False):
        rows = summarise([result for result in results if result.case == case])
        times = [1000 * row.seconds for row in rows]
        colours = [_OURS if row.contender in (PROJECT, FUSED) else _OTHERS for row in rows]
        bars = axis.barh([row.title for row in rows], times, color=colours, height=0.7)
        labels = [
            (f"{time:,.0f} ms" if time >= 100 else f"{time:.3g} ms")
            + ("" if row.ratio is None or row.contender == PROJECT else f"  ({row.ratio:.2f}x)")
            for time, row in zip(times, rows, strict=True)
        ]
        axis.bar_label(bars, labels, padding=4, fontsize=9)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.45 * max(times))
        if least := floor_seconds(results, case):
            axis.axvline(1000 * least, color=_FLOOR, linestyle="--", linewidth=1.2, label="matrix products alone")
            axis.legend(loc="lower right", frameon=False, fontsize=8)
        axis.set_title(str(case), fontsize=11, loc="left", fontweight="bold")
        axis.set_xlabel("milliseconds, less is better", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    wrapped = "\n".join(textwrap.fill(line, _CHARACTERS_PER_PANEL * columns) for line in heading.splitlines())
    figure.suptitle(wrapped, fontsize=8, x=0.01, ha="left", color="#555555")
    figure.savefig(path, dpi=150)
    plt.close(figure)
