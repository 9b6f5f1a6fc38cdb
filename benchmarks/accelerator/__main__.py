"""Parity, speed and memory on the accelerator that JAX finds first: ``python -m benchmarks.accelerator``.

Six parts. ``parity``: the tests of whole nets, run there; ``train`` and ``forward``: this project, stock Flax and
PyTorch in turn; ``training``: a whole run on the digits, and an epoch of random images from the device's memory;
``depthwise``: depthwise convolutions alone, against the time to move their bytes; ``profile``: the train step's
kernels, largest first. What is not installed is skipped, and said. All that was measured goes to one JSON file, each
row as it comes.

Exit codes: 0 done, 2 the command line is wrong, 1 a part failed; the others are then still run.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.accelerator import parts, tables
from benchmarks.accelerator.workers import WorkerError
from benchmarks.report import page_width


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(parts.PARTS)
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--size", type=float, choices=(0.5, 1.0, 1.5, 2.0), default=1.0)
    parser.add_argument("--batches", nargs="+", type=int, default=(128, 512, 2048), help="of the train step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("accelerator.json"))
    return parser


def main() -> int:
    """Returns the exit code."""
    arguments = _parser().parse_args()
    # JAX takes most of the device's memory at its start otherwise, and PyTorch needs some as well.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    console = Console(highlight=False, soft_wrap=True, width=page_width())
    report: dict = {"command": ["python", "-m", "benchmarks.accelerator", *sys.argv[1:]], "parts": {}, "failures": {}}
    with tempfile.TemporaryDirectory() as folder:
        session = parts.Session(arguments.size, tuple(arguments.batches), arguments.rounds, Path(folder))
        try:
            report |= session.describe()
            console.print(tables.heading(report))
            for name in arguments.parts:
                _run_part(name, session, report, console, arguments.json)
        finally:
            session.stop()
    return 1 if report["failures"] else 0


def _run_part(name: str, session: parts.Session, report: dict, console: Console, json_file: Path) -> None:
    started = time.monotonic()
    rows: list[dict] = []
    try:
        for row in parts.PARTS[name](session):
            rows.append(row)
            if "failure" in row:
                report["failures"][f"{name}, {row['name']}"] = row["failure"]
            report["parts"][name] = {"rows": rows, "seconds": time.monotonic() - started}
            json_file.write_text(json.dumps(report, indent=1) + "\n")
    except (WorkerError, OSError, RuntimeError) as error:
        report["failures"][name] = str(error)
        json_file.write_text(json.dumps(report, indent=1) + "\n")
        print(f"benchmarks.accelerator: {name}: {error}", file=sys.stderr)
    console.print(tables.table(name, rows))
    console.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")


if __name__ == "__main__":
    sys.exit(main())
