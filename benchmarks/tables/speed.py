"""Times of the contenders, from what ``python -m benchmarks train --json FILE`` and ``infer`` wrote."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, FUSED, PROJECT
from benchmarks.tables import markdown

_PACKAGES = ("python", "jax", "flax", "torch", "onnxruntime", "openvino")
_TASKS = {"train": "train step", "infer": "forward"}
_Case = tuple[str, float, int]


class _Measured:
    """One file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text())
        self.rows = {(_case(row), row["contender"]): row for row in self.found["summary"]}
        self.peaks = {(_case(row), row["contender"]): row["peak_bytes"] for row in self.found["results"]}
        self.floors = {_case(row): row["seconds"] for row in self.found["floors"]}
        self.cases = list(dict.fromkeys(case for case, _ in self.rows))
        self.contenders = [name for name in CONTENDERS if any(name == other for _, other in self.rows)]

    @property
    def machine(self) -> str:
        hardware = self.found["hardware"]
        vectors = "with" if "avx512f" in hardware["vector_extensions"] else "without"
        return f"{hardware['cpu']} {vectors} AVX-512, {hardware['cores']} cores"

    @property
    def commit(self) -> str:
        """Empty in files that were written before commits were noted."""
        return self.found.get("commit") or ""

    def cell(self, case: _Case, contender: str) -> str:
        """Milliseconds, and in brackets the ratio to this project's net."""
        row = self.rows.get((case, contender))
        if row is None:
            return ""
        ratio = row["ratio"]
        return _milliseconds(row["seconds"]) + ("" if ratio is None or contender == PROJECT else f" ({ratio:.2f})")


def _case(row: Mapping[str, Any]) -> _Case:
    return row["task"], row["size"], row["batch"]


def _milliseconds(seconds: float) -> str:
    digits = 2 if seconds < 0.01 else 1 if seconds < 0.1 else 0
    return f"{1000 * seconds:,.{digits}f}"


def _title(contender: str) -> str:
    return {PROJECT: "**flax_shufflenet**", FUSED: "**flax_shufflenet, `fs.fuse`**"}.get(
        contender, CONTENDERS[contender].title
    )


def overview(*paths: Path) -> list[str]:
    """All cases side by side, of one machine and one commit, without contenders that are only for some.

    Raises:
        ValueError: the files are of several machines or commits.
    """
    files = [_Measured(path) for path in paths]
    if len({(file.machine, file.commit) for file in files}) > 1:
        raise ValueError(
            f"{' and '.join(file.path.name for file in files)} are not of one machine and commit; measure them anew"
        )
    columns = [(file, case) for file in files for case in file.cases]
    contenders = [
        name for name in CONTENDERS if not CONTENDERS[name].optional and any(name in file.contenders for file in files)
    ]
    heading = ["ms", *(f"{_TASKS[task]}, size {size}, batch {batch}" for _, (task, size, batch) in columns)]
    rows = ([_title(name), *(file.cell(case, name) for file, case in columns)] for name in contenders)
    return [
        *markdown.table(heading, rows),
        "",
        f"{_measured_on(files)} ({', '.join(markdown.file(file.path) for file in files)}).",
    ]


def train(path: Path) -> list[str]:
    """A column for each case's time, and one for its memory."""
    return _with_columns(path, memory=True)


def infer(path: Path) -> list[str]:
    return _with_columns(path, memory=False)


def _with_columns(path: Path, *, memory: bool) -> list[str]:
    file = _Measured(path)
    heading, rows = ["ms"], [[_title(name)] for name in file.contenders]
    floors = ["the matrix products alone"]
    for case in file.cases:
        _, size, batch = case
        heading += [f"size {size}, batch {batch}", *(["MB"] if memory else [])]
        floors += [_milliseconds(file.floors[case]) if case in file.floors else "", *([""] if memory else [])]
        for name, row in zip(file.contenders, rows, strict=True):
            row.append(file.cell(case, name))
            if memory:
                peak = file.peaks.get((case, name))
                row.append("" if peak is None else f"{peak / 1e6:,.0f}")
    measured_on = f"{_measured_on([file])}: `{_command(file.found['command'])}` ({markdown.file(file.path)})."
    return [*markdown.table(heading, [*rows, floors] if file.floors else rows), "", measured_on]


def _measured_on(files: Sequence[_Measured]) -> str:
    """What ran on what, when and how often."""
    first = files[0]
    names = dict.fromkeys(name for file in files for name in _needed(file))
    parts = [
        first.machine,
        f"load at the start {_each(format(file.found['hardware']['load'], '.1f') for file in files)}",
        f"medians of {_each(str(file.found['settings']['rounds']) for file in files)} rounds",
        *([f"commit `{first.commit}`"] if first.commit else []),
        _each(file.found["date"][:10] for file in files),
        markdown.versions(first.found["versions"], list(names)),
    ]
    return ", ".join(parts)


def _each(values: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(values))


def _needed(file: _Measured) -> list[str]:
    return [name for name in _PACKAGES if name not in ("onnxruntime", "openvino") or name in file.contenders]


def _command(words: Sequence[str]) -> str:
    """Without the files that it wrote."""
    kept = [
        word for before, word in zip(["", *words], words, strict=False) if not {before, word} & {"--json", "--plot"}
    ]
    return shlex.join(kept)
