"""The figures as tables for people."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table


def heading(report: dict[str, Any]) -> str:
    """What ran on what, and what it can do at most."""
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f} GFLOP/s" for dtype, rate in report["flops_per_second"].items())
    shown = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"{report['device']['device']} ({report['device']['platform']}); a copy moves "
        f"{report['copy_bytes_per_second'] / 1e9:,.0f} GB/s, matrix products: {rates}; "
        f"medians of {report['rounds']} rounds, size {report['size']}, images of 32x32\n{shown}"
    )


def _number(row: dict[str, Any], name: str, unit: float, digits: int = 2) -> str:
    return f"{row[name] / unit:,.{digits}f}" if row.get(name) is not None else ""


def table(part: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One part's rows."""
    columns, cells = _TABLES[part]
    result = Table(title=part, title_justify="left")
    for column in ("", *columns):
        result.add_column(column, justify="right" if column else "left", overflow="fold")
    for row in rows:
        problem = row.get("failure") or (f"skipped: {row['skipped']}" if "skipped" in row else "")
        style = "bold red" if "failure" in row else None
        result.add_row(escape(row["name"]), *([escape(problem)] if problem else cells(row)), style=style)
    return result


def _parity(row: dict[str, Any]) -> list[str]:
    digits = [f"{row[name]:.2g}" if name in row else "" for name in ("error", "pytorch_error")]
    return [*digits, f"{row['error'] / row['pytorch_error']:.2f}" if row.get("pytorch_error") else ""]


def _race(row: dict[str, Any]) -> list[str]:
    convolutions = "; ".join(f"{count} {kind}" for kind, count in row.get("convolutions", {}).items())
    return [
        str(row["batch"]),
        row["dtype"],
        _number(row, "seconds", 1e-3, 3),
        _number(row, "ratio", 1),
        _number(row, "floor", 1e-3, 3),
        f"{row['batch'] / row['seconds']:,.0f}",
        _number(row, "memory_bytes", 1e6, 0),
        _number(row, "compile_seconds", 1, 0),
        convolutions,
    ]


def _training(row: dict[str, Any]) -> list[str]:
    accuracy = f"{row['accuracy']:.2%}" if "accuracy" in row else ""
    return [_number(row, "images_per_second", 1, 0), _number(row, "compile_seconds", 1, 0), accuracy]


def _depthwise(row: dict[str, Any]) -> list[str]:
    return [row["dtype"], *(_number(row, name, 1e-6, 0) for name in ("flax_shufflenet", "PyTorch", "floor"))]


def _profile(row: dict[str, Any]) -> list[str]:
    return [row["dtype"], f"{row['calls']:.0f}", _number(row, "seconds", 1e-6, 0)]


_RACE = ("batch", "dtype", "ms", "ratio", "bytes alone ms", "images/s", "MB", "compile s", "convolutions")
_TABLES = {
    "parity": (("error", "PyTorch's", "ratio"), _parity),
    "train": (_RACE, _race),
    "forward": (_RACE, _race),
    "training": (("images/s", "compile s", "accuracy"), _training),
    "profile": (("dtype", "calls", "us"), _profile),
    "depthwise": (("dtype", "us", "PyTorch us", "bytes alone us"), _depthwise),
}
