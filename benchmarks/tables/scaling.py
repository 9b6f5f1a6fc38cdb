"""What data parallelism would cost on TPUs, from what ``python -m benchmarks.scaling --json FILE`` wrote."""

import json
from pathlib import Path
from typing import Any

from benchmarks.scaling import CLOCK, all_collectives, hops, predict
from benchmarks.tables import markdown

_HEADING = (
    "chips",
    "batch statistics",
    "all-reduces",
    "MB",
    "computation, ms",
    "by the compiler, ms",
    "latency, ms",
    "transfer, ms",
    "exchange / computation",
    "equal at batch",
    "equal at us a link",
)


def predicted(path: Path) -> list[str]:
    """A row for each program; the two last columns say where exchanging would take as long as computing."""
    found = json.loads(path.read_text())
    batch = max(row["batch"] for row in found["rows"])
    rows = [_cells(row, found["rows"]) for row in found["rows"] if row["batch"] == batch]
    versions = markdown.versions(found["versions"], ("jax", "libtpu", "flax"))
    source = f"commit `{found['commit']}`, {found['date']}, {versions} ({markdown.file(path)})"
    step = f"TPU v5e, size {found['size']}, {found['dtype']}, batch {batch} a chip"
    return [*markdown.table(_HEADING, rows), "", f"{step}: compiled and predicted, never run; {source}."]


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    prediction, exchanged = predict(row), all_collectives(row)
    computing = f"{1e3 * prediction.computation:.1f}", f"{1e3 * row['estimated_cycles'] / CLOCK:.1f}"
    if not exchanged.number:
        return [str(row["chips"]), "", "", "", *computing, "", "", "", "", ""]
    seconds_a_hop = (prediction.computation - prediction.transfer) / (exchanged.number * hops(row["chips"]))
    return [
        str(row["chips"]),
        row["batch_statistics"].replace("_", " "),
        str(exchanged.number),
        f"{exchanged.bytes / 1e6:.2f}",
        *computing,
        f"{1e3 * prediction.latency:.3f}",
        f"{1e3 * prediction.transfer:.3f}",
        f"{prediction.communication / prediction.computation:.3f}",
        f"{_equal_batch(row, rows):.0f}",
        f"{1e6 * seconds_a_hop:.1f}",
    ]


def _equal_batch(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    """The batch of a chip whose computation takes as long as what is exchanged, by what an image more takes on one
    chip; 0 where even an empty one takes longer."""
    first, second = (one for one in rows if one["chips"] == 1)
    an_image = (predict(second).computation - predict(first).computation) / (second["batch"] - first["batch"])
    prediction = predict(row)
    return max(0, row["batch"] - (prediction.computation - prediction.communication) / an_image)
