"""Speed, side by side: ``python -m benchmarks train``, ``infer`` or ``growth``; ``--help`` lists the options.

``train`` and ``infer`` race this project's net against PyTorch, stock Flax layers and, for inference, two engines;
``growth`` measures what an image costs this project's train step as the batch grows. The contenders of a table run
in turn, round after round, with the same threads and the same allocator settings. Needs Linux.

Exit codes: 0 done, 2 the command line is wrong, 1 anything else.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import contenders
from benchmarks.case import Case
from benchmarks.contenders import CONTENDERS, FLOORS, PROJECT

_SIZES = (0.5, 1.0, 1.5, 2.0)
_DEFAULT_BATCHES = {"train": (128,), "infer": (1, 16, 128), "growth": (16, 64, 256)}
_FLOOR = "floor"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, batches in _DEFAULT_BATCHES.items():
        sub = commands.add_parser(command)
        sub.add_argument("--sizes", nargs="+", type=float, choices=_SIZES, default=(0.5, 1.0))
        sub.add_argument("--batches", nargs="+", type=_positive, default=batches)
        sub.add_argument("--rounds", type=_positive, default=7)
        sub.add_argument("--json", type=Path, help="write everything that was measured to this file")
        if command != "growth":
            names = [name for name, one in CONTENDERS.items() if command in one.tasks and name not in FLOORS]
            usual = [name for name in names if not CONTENDERS[name].optional]
            sub.add_argument("--only", nargs="+", choices=[*names, _FLOOR], default=[*usual, _FLOOR])
            sub.add_argument("--plot", type=Path, help="draw the bar chart to this PNG file")
    return parser


def _entries(arguments: argparse.Namespace, folder: Path) -> list[list[tuple[str, Case]]]:
    """The races: one for each case; the growth of a size is one race of its batches."""
    if arguments.command == "growth":
        return [
            [(PROJECT, Case("train", size, batch, folder)) for batch in arguments.batches] for size in arguments.sizes
        ]
    names = [name for name in CONTENDERS if (_FLOOR if name in FLOORS else name) in arguments.only]
    return [
        [(name, Case(arguments.command, size, batch, folder)) for name in names]
        for size in arguments.sizes
        for batch in arguments.batches
    ]


def run(arguments: argparse.Namespace, command_line: Sequence[str]) -> None:
    """Measures, and writes what was asked for.

    Raises:
        BenchmarkError: a contender cannot run, or does not compute what the others do.
        OSError: a result cannot be written.
    """
    from rich.console import Console

    from benchmarks import harness, report

    console = Console(highlight=False, soft_wrap=True, width=report.page_width())
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    heading, machine = report.heading(f"{arguments.rounds} rounds"), report.hardware()
    console.print(heading)
    results: list[harness.Result] = []
    with tempfile.TemporaryDirectory() as name:
        for entries in _entries(arguments, Path(name)):
            measured = harness.race(
                entries, arguments.rounds, Path(name), lambda line: progress.print(line, style="dim")
            )
            results += measured
            if arguments.command == "growth":
                report.print_growth(console, measured, entries[0][1].size)
            else:
                report.print_case(console, measured, entries[0][1])
            if arguments.json:  # after each race: a long run that is interrupted later has not been for nothing
                found = report.as_json(results, command_line, arguments.rounds, machine)
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.command != "growth" and arguments.plot:
        from benchmarks import plot

        plot.save(results, heading, arguments.plot)


def main() -> int:
    """Returns the exit code."""
    arguments = _parser().parse_args()
    names = [PROJECT] if arguments.command == "growth" else arguments.only
    missing = contenders.missing_modules([name for name in names if name != _FLOOR])
    if missing:
        print(f"benchmarks: {', '.join(missing)} missing: pip install -e '.[benchmarks]'", file=sys.stderr)
        return 1
    try:
        run(arguments, sys.argv[1:])
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # whatever it is, users get one line
        print(f"benchmarks: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
