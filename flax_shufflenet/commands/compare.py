"""Training runs side by side: ``flax-shufflenet compare RUN RUN ...``; reads what they wrote, without JAX."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flax_shufflenet.errors import one_line
from flax_shufflenet.runs.run import Run, RunError, duration, percent, read_run
from flax_shufflenet.system import standard_streams
from flax_shufflenet.system.files import write_whole

# Where a run's results and data lie and how it gets started say nothing of what it does.
_NOT_COMPARED = {"out", "resume", "force", "tensorboard", "no_compilation_cache", "data_dir"}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What is not the same in all runs: options, and of the rest the data, the device and the versions.

    Each with its value in each run; None where a run does not have it. Versions count where all runs name them.
    """
    said = [
        {name: run.description[name] for name in ("framework", "device", "source") if name in run.description}
        | {name: value for name, value in run.options.items() if name not in _NOT_COMPARED}
        for run in runs
    ]
    names = dict.fromkeys(name for one in said for name in one)
    found = {name: [one.get(name) for one in said] for name in names}
    versions = [run.description.get("versions", {}) for run in runs]
    found |= {name: [one[name] for one in versions] for name in versions[0] if all(name in one for one in versions)}
    found = {name: values for name, values in found.items() if any(value != values[0] for value in values)}
    if "dataset" in found:
        found.pop("source", None)  # it follows
    return found


def figures(run: Run) -> dict[str, Any]:
    """A run's figures; None for what there is not yet. ``seconds`` are those of the epochs."""
    last, best = run.last, run.best
    return {
        "epochs_done": len(run.epochs),
        "epochs": run.options["epochs"],
        "last_test_accuracy": last and last["test_accuracy"],
        "best_test_accuracy": best and best["test_accuracy"],
        "best_epoch": best and best["epoch"],
        "seconds": run.seconds,
        "images_per_second": run.images_per_second,
    }


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """Each run under the last part of its folder's name; under the whole name where that is not one run's alone."""
    short = [run.folder.resolve().name for run in runs]
    return {name if short.count(name) == 1 else str(run.folder): run for name, run in zip(short, runs, strict=True)}


def cells(runs: Mapping[str, Run]) -> list[list[str]]:
    """A heading, and a row for each run: what differs between them, then their figures."""
    differing = {name: values for name, values in differences(list(runs.values())).items() if name != "epochs"}
    rows = [["run", *differing, "epochs", "last test", "best test (epoch)", "time", "images/s"]]
    for number, (name, run) in enumerate(runs.items()):
        done = figures(run)
        best = done["best_test_accuracy"]
        rows.append(
            [
                name,
                *("-" if values[number] is None else str(values[number]) for values in differing.values()),
                f"{done['epochs_done']}/{done['epochs']}",
                "-" if best is None else percent(done["last_test_accuracy"]),
                "-" if best is None else f"{percent(best)} ({done['best_epoch']})",
                duration(done["seconds"]),
                "-" if best is None else f"{done['images_per_second']:,.0f}",
            ]
        )
    return rows


def print_table(runs: Mapping[str, Run]) -> None:
    """On a terminal with lines, and with a column for each run where rows would not fit; plain in a pipe."""
    rows = cells(runs)
    as_they_are: Any = {"highlight": False, "markup": False, "emoji": False}  # names with [brackets] and :colons: too
    unbounded = Console(**as_they_are, width=10_000)
    if not unbounded.is_terminal:
        unbounded.print(_drawn(rows, plain=True))
        return
    console = Console(**as_they_are)
    wide = _drawn(rows, plain=False)
    fits = unbounded.measure(wide).minimum <= console.width
    console.print(wide if fits else _drawn(list(zip(*rows, strict=True)), plain=False))


def _drawn(rows: Sequence[Sequence[str]], *, plain: bool) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style=None) if plain else Table()
    for column in rows[0]:
        drawn.add_column(column, overflow="fold")
    for row in rows[1:]:
        drawn.add_row(*row)
    return drawn


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flax-shufflenet compare",
        description="Lays training runs side by side: the options that differ, epochs done, test accuracy after the "
        "last and the best epoch, time of the epochs, images/s. Runs that are not finished are shown as they stand.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="the folder of a run, as train.py's --out")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw test accuracy and loss of all to this PNG")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser


def main() -> int:
    """Returns the exit code: 0 done, 2 the command line is wrong, 1 a folder is no run or the picture failed."""
    with standard_streams.lasting():
        return _compare(_parser().parse_args())


def _compare(arguments: argparse.Namespace) -> int:
    found, failed = [], False
    for folder in dict.fromkeys(arguments.runs):
        try:
            found.append(read_run(folder))
        except RunError as error:
            print(f"compare: {error}", file=sys.stderr)
            failed = True
    if not found:
        return 1
    runs = name_runs(found)
    if arguments.json:
        rows = [
            {"run": name, "folder": str(run.folder), **figures(run), "description": run.description}
            for name, run in runs.items()
        ]
        print(json.dumps({"differences": differences(found), "runs": rows}, indent=1))
    else:
        print_table(runs)
    if arguments.plot:
        from flax_shufflenet.runs import plots  # imported here: it is the only part that needs NumPy and matplotlib

        try:
            write_whole(arguments.plot, plots.comparison(runs))
        except OSError as error:
            print(f"compare: {arguments.plot} cannot be written: {error.strerror}", file=sys.stderr)
            failed = True
        except ModuleNotFoundError as error:
            print(f"compare: {one_line(error)}", file=sys.stderr)
            failed = True
    return int(failed)
