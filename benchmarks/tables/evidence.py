"""What running statistics told, from what ``python -m benchmarks.evidence --json FILE`` wrote."""

import json
from pathlib import Path
from typing import Any

import benchmarks.evidence
from benchmarks.tables import markdown


def graphs(path: Path) -> list[str]:
    """Every net, with the counts."""
    found = json.loads(path.read_text())
    return [*benchmarks.evidence.table(found["rows"]), "", _versions(found)]


def inputs(path: Path) -> list[str]:
    """What nets told of their images, without what they told of their stems."""
    found = json.loads(path.read_text())
    rows = (
        [row["net"], row["truth"], _values(row["mean"], row["deviation"]), row["says"]]
        for row in found["rows"]
        if row["question"] == "input"
    )
    return [*markdown.table(["net", "truth", "found", "says"], rows), "", _versions(found)]


def fits(path: Path) -> list[str]:
    """How well each net fits the graph that its names say."""
    found = json.loads(path.read_text())
    rows = (
        [row["net"], row["graph"], f"{row['median']:.3f}", f"{row['tenth']:.3f}", "fits" if row["fits"] else "does not"]
        for row in found["rows"]
    )
    return [*markdown.table(["net", "graph", "median", "lowest tenth", "says"], rows), "", _versions(found)]


def _values(means: list[float], deviation: float) -> str:
    return f"means {', '.join(f'{mean:.2g}' for mean in means)}, deviation {deviation:.2g}"


def _versions(found: dict[str, Any]) -> str:
    return markdown.versions(found["versions"], ("python", "jax", "flax", "torch")) + "."
