"""Figures of an accelerator, from what ``python -m benchmarks.accelerator --json FILE`` wrote."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import markdown

_Row = dict[str, Any]
_FLOOR = "every operation's bytes at the speed of a copy"
# What tests/test_net_parity.py compares, and its tolerance: absolute in float64, else a multiple of PyTorch's error.
_PARITY = {
    "test_outputs_are_the_same_in_float64": ("float64: outputs, eval and train mode", "1e-10"),
    "test_every_gradient_and_statistic_is_the_same_in_float64": ("float64: gradients and running statistics", "1e-10"),
    "test_ten_sgd_steps_are_the_same_in_float64": ("float64: ten SGD steps", "1e-8"),
    "test_float32_outputs_are_as_exact_as_pytorchs": ("float32 at `highest` precision: outputs", "4"),
    "test_float32_statistics_are_as_exact_as_pytorchs": ("float32 at `highest`: running statistics", "4"),
    "test_float32_gradients_away_from_kinks_are_as_exact_as_pytorchs": (
        "float32 at `highest`: gradients, away from kinks",
        "4",
    ),
}


def train(path: Path) -> list[str]:
    """Milliseconds a step, and the memory in MB."""
    return _race(path, "train", lambda row: f"{_milliseconds(row['seconds'])} ({row['memory_bytes'] / 1e6:,.0f})")


def forward(path: Path) -> list[str]:
    """Milliseconds a batch."""
    return _race(path, "forward", lambda row: f"{1000 * row['seconds']:.2f}")


def _race(path: Path, part: str, cell: Callable[[_Row], str]) -> list[str]:
    """A column for each batch, a row for each net and dtype."""
    found = json.loads(path.read_text())
    measured = [row for row in found["parts"][part]["rows"] if row.get("seconds") is not None]
    batches = list(dict.fromkeys(row["batch"] for row in measured))
    rows = []
    for dtype in dict.fromkeys(row["dtype"] for row in measured):
        of_dtype = [row for row in measured if row["dtype"] == dtype]
        for name in dict.fromkeys(row["name"] for row in of_dtype):
            cells = {row["batch"]: cell(row) for row in of_dtype if row["name"] == name}
            rows.append([name, dtype, *(cells.get(batch, "") for batch in batches)])
        floors = {row["batch"]: _milliseconds(row["floor"]) for row in of_dtype if row.get("floor") is not None}
        if floors:
            rows.append([f"*{_FLOOR}*", dtype, *(floors.get(batch, "") for batch in batches)])
    heading = ["ms", "dtype", *(f"batch {batch}" for batch in batches)]
    measured_on = f"Size {found['size']}, medians of {found['rounds']} rounds; {_measured_on(found, path)}"
    return [*markdown.table(heading, rows), "", measured_on]


def depthwise(path: Path) -> list[str]:
    """Microseconds of one convolution: this project's, PyTorch's, and those of its bytes."""
    found = json.loads(path.read_text())
    measured = found["parts"]["depthwise"]["rows"]
    shapes = list(dict.fromkeys(row["name"].partition(", ")[2] for row in measured))
    rows = []
    for dtype in dict.fromkeys(row["dtype"] for row in measured):
        of_dtype = {row["name"]: row for row in measured if row["dtype"] == dtype}
        for what in dict.fromkeys(name.partition(", ")[0] for name in of_dtype):
            rows.append([what, dtype, *(_microseconds(of_dtype[f"{what}, {shape}"]) for shape in shapes)])
    measured_on = f"Medians of {found['rounds']} rounds; {_measured_on(found, path)}"
    return [*markdown.table(["us", "dtype", *shapes], rows), "", measured_on]


def _microseconds(row: _Row) -> str:
    return " / ".join(f"{1e6 * row[name]:,.0f}" for name in ("flax_shufflenet", "PyTorch", "floor"))


def parity(exact: Path, default: Path) -> list[str]:
    """The worst of each kind of comparison: ``exact`` at the precision that was asked for, ``default`` at JAX's own."""
    found = json.loads(exact.read_text())
    rows = []
    for test, (what, tolerance) in _PARITY.items():
        cases = [row for row in found["parts"]["parity"]["rows"] if row["name"].startswith(f"{test}[")]
        rows.append([what, str(len(cases)), _worst(cases), tolerance])
    at_default = json.loads(default.read_text())
    cases = [row for row in at_default["parts"]["parity"]["rows"] if "gradients" in row and "failure" not in row]
    for name, what in (
        ("eval_output", "outputs in eval mode"),
        ("train_output", "outputs in train mode"),
        ("gradients", "gradients, away from kinks"),
    ):
        worst = f"{max(row[name] for row in cases):.1e}"
        rows.append([f"default precision (TF32), batch 32: {what}", str(len(cases)), worst, ""])
    heading = ["compared with PyTorch in float64 on the CPU", "cases", "worst", "tolerance"]
    sources = f"{_measured_on(found, exact)} At the default precision: {_measured_on(at_default, default)}"
    return [*markdown.table(heading, rows), "", sources]


def _worst(cases: Sequence[_Row]) -> str:
    """The largest error, as a multiple of PyTorch's own where that was measured."""
    if "pytorch_error" in cases[0]:
        return f"{max(row['error'] / row['pytorch_error'] for row in cases):.2f} times PyTorch's own error"
    return f"{max(row['error'] for row in cases):.1e}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f}" if seconds < 0.01 else f"{1000 * seconds:.1f}"


def _measured_on(found: dict[str, Any], path: Path) -> str:
    versions = markdown.versions(found["versions"], ("python", "jax", "flax", "torch"))
    commit = f"commit `{found['commit']}`, " if found.get("commit") else ""
    return f"{found['device']['device']}, {commit}{found['date']}, {versions} ({markdown.file(path)})."
