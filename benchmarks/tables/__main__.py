"""``python -m benchmarks.tables``: writes the measured tables of README.md and docs/ from the JSON that they name.

A table stands between ``<!-- table: NAME FILE ... -->`` and ``<!-- end of table -->``; NAME is one of ``TABLES``, and
the files, from the project's root, are what it is made of. What stood there is replaced.
Exit codes: 0 all tables are as the files have it; 2 the command line is wrong; 1 anything else.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.tables import accelerator, evidence, runs, scaling, speed
from benchmarks.tables.markdown import ROOT

_BEGIN, _END = r"<!-- table: (\w+) ([^\n]+) -->", "<!-- end of table -->"
_PLACE = re.compile(rf"^{_BEGIN}$\n.*?^{re.escape(_END)}$", re.MULTILINE | re.DOTALL)

# Each takes the files and returns the lines of a table, and of what was measured on what.
TABLES: dict[str, Callable[..., list[str]]] = {
    "speed": speed.overview,
    "train": speed.train,
    "infer": speed.infer,
    "accuracy": runs.accuracy,
    "runs": runs.whole,
    "tries": runs.tries,
    "seeds": runs.seeds,
    "variations": runs.variations,
    "time_to_accuracy": runs.time_to_accuracy,
    "evidence": evidence.graphs,
    "graph_fit": evidence.fits,
    "evidence_inputs": evidence.inputs,
    "accelerator_train": accelerator.train,
    "accelerator_forward": accelerator.forward,
    "accelerator_depthwise": accelerator.depthwise,
    "accelerator_parity": accelerator.parity,
    "scaling": scaling.predicted,
}


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewritten(text: str) -> str:
    """A document with all its tables as their files have them.

    Raises:
        ValueError: no such table, a file that is not there, or files that do not belong together.
    """
    if text.count("<!-- table:") != len(_PLACE.findall(text)):
        raise ValueError(f"a table does not begin with '{_BEGIN}' or does not end with '{_END}'")
    return _PLACE.sub(_table, text)


def _table(place: re.Match[str]) -> str:
    name, files = place[1], place[2].split()
    if name not in TABLES:
        raise ValueError(f"there is no table {name}, only {', '.join(TABLES)}")
    missing = [file for file in files if not (ROOT / file).exists()]
    if missing:
        raise ValueError(f"table {name}: no such file {', '.join(missing)}")
    lines = TABLES[name](*(ROOT / file for file in files))
    return "\n".join([f"<!-- table: {name} {' '.join(files)} -->", "", *lines, "", _END])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a table is out of date")
    check = parser.parse_args().check
    stale = False
    for path in documents():
        text = path.read_text(encoding="utf-8")
        try:
            new = rewritten(text)
        except ValueError as error:
            print(f"tables: {path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        if new != text:
            stale = True
            print(f"{path.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
            if not check:
                path.write_text(new, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
