"""What data parallelism would cost on TPUs, from what ``python -m benchmarks.scaling --json FILE`` wrote."""

import json
from pathlib import Path
from typing import Any

from benchmarks.scaling import CLOCK, all_collectives, hops, predict
from benchmarks.tables import markdown

_HEADING = (
    "chips",
    "dtype",
    "batch statistics",
    "all-reduces of a step",
    "MB",
    "computation, ms",
    "the compiler's estimate of it, ms",
    "latency, ms",
    "transfer, ms",
    "exchange / computation",
    "as long at batch",
    "as long at us a hop",
)


def predicted(path: Path) -> list[str]:
    """A row for each program; the two last columns say where exchanging would take as long as computing."""
    found = json.loads(path.read_text())
    batch = max(row["batch"] for row in found["rows"])
    rows = [_cells(row, found["rows"]) for row in found["rows"] if row["batch"] == batch]
    versions = markdown.versions(found["versions"], ("jax", "libtpu", "flax"))
    source = f"commit `{found['commit']}`, {found['date']}, {versions} ({markdown.file(path)})"
    compiled = f"TPU v5e, size {found['size']}, batch {batch} a chip: compiled and predicted, never run; {source}."
    return [*markdown.table(_HEADING, rows), "", compiled]


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    prediction, exchanged = predict(row), all_collectives(row)
    computing = f"{1e3 * prediction.computation:.1f}", f"{1e3 * row['estimated_cycles'] / CLOCK:.1f}"
    if not exchanged.number:
        return [str(row["chips"]), row["dtype"], "", "", "", *computing, "", "", "", "", ""]
    seconds_a_hop = (prediction.computation - prediction.transfer) / (exchanged.number * hops(row["chips"]))
    return [
        str(row["chips"]),
        row["dtype"],
        row["batch_statistics"].replace("_", " "),
        str(exchanged.number),
        f"{exchanged.bytes / 1e6:.2f}",
        *computing,
        f"{1e3 * prediction.latency:.3f}",
        f"{1e3 * prediction.transfer:.3f}",
        f"{prediction.communication / prediction.computation:.3f}",
        f"{_batch_of(prediction.communication, row['dtype'], rows):.0f}",
        f"{1e6 * seconds_a_hop:.1f}",
    ]


def _batch_of(seconds: float, dtype: str, rows: list[dict[str, Any]]) -> float:
    """The batch of one chip whose computation takes so long, on the line through the two that were compiled; 0 where
    even an empty one takes longer."""
    first, second = (row for row in rows if row["chips"] == 1 and row["dtype"] == dtype)
    times = [predict(row).computation for row in (first, second)]
    an_image = (times[1] - times[0]) / (second["batch"] - first["batch"])
    return max(0, first["batch"] + (seconds - times[0]) / an_image)
