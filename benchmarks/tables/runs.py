"""What training runs reached, from their metrics.jsonl."""

import itertools
import statistics
from pathlib import Path

from benchmarks.seeds import describe_differences
from benchmarks.tables import markdown
from flax_shufflenet.runs.run import Run, percent, read_run, wilson_interval
from flax_shufflenet.training.config import TaskOptions, TrainingOptions
from flax_shufflenet.training.recipe import RECIPES

# Test accuracies: of digits, and what size 0.5 is to reach on CIFAR-10.
_LEVELS = (0.90, 0.95, 0.98)
_GOAL = 0.86
_PACKAGES = ("python", "jax", "flax", "torch")


def accuracy(*folders: Path) -> list[str]:
    """For the README: net, epochs, accuracy."""
    runs = _read(folders)
    rows = ([f"`python train.py {command_options(run)}`", _accuracy(run), markdown.file(run.folder)] for run in runs)
    return [*markdown.table(["", "test accuracy (95 % interval)", "log"], rows), "", _ran_on(runs)]


def whole(*folders: Path) -> list[str]:
    """Runs to their end, with the first epoch that tested at ``_GOAL``, and what an epoch took: the quickest, and the
    median."""
    runs = _read(folders)
    rows = []
    for run in runs:
        seconds = [record["seconds"] for record in run.epochs]
        best = run.best
        reached = (str(record["epoch"]) for record in run.epochs if record["test_accuracy"] >= _GOAL)
        rows.append(
            [
                f"`{command_options(run)}`",
                str(len(run.epochs)),
                _accuracy(run),
                "" if best is None else f"{percent(best['test_accuracy'])} ({best['epoch']})",
                next(reached, ""),
                f"{min(seconds):.0f} to {statistics.median(seconds):.0f} s",
                markdown.file(run.folder),
            ]
        )
    heading = [
        "`python train.py` and",
        "epochs",
        "last test accuracy (95 % interval)",
        "best (epoch)",
        f"epochs to {percent(_GOAL, 0)}",
        "an epoch",
        "log",
    ]
    return [*markdown.table(heading, rows), "", _ran_on(runs)]


def tries(*folders: Path) -> list[str]:
    """Runs that differ in a few options, on training and test images."""
    runs = _read(folders)
    rows = (
        [
            f"`{command_options(run)}`",
            percent(_last(run, "train_accuracy"), 1),
            _accuracy(run),
            markdown.file(run.folder),
        ]
        for run in runs
    )
    heading = ["`python train.py` and", "training accuracy", "last test accuracy (95 % interval)", "log"]
    return [*markdown.table(heading, rows), "", _ran_on(runs)]


def variations(*folders: Path) -> list[str]:
    """A row for each way of training, a column for each seed: the last test accuracy; then the mean, and how far it is
    from the first row's mean over the same seeds."""
    runs = _read(folders)
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        found.setdefault(_command(run), {})[run.options["seed"]] = _last(run, "test_accuracy")
    numbers = sorted({number for by_seed in found.values() for number in by_seed})
    first = next(iter(found.values()))
    rows = []
    for command, by_seed in found.items():
        shared = [number for number in by_seed if number in first]
        apart = statistics.mean(by_seed[number] - first[number] for number in shared) if shared else None
        cells = (percent(by_seed[number]) if number in by_seed else "" for number in numbers)
        difference = "" if apart is None or by_seed is first else f"{100 * apart:+.2f}"
        rows.append([f"`{command}`", *cells, percent(statistics.mean(by_seed.values())), difference])
    heading = ["", *(f"seed {number}" for number in numbers), "mean", "less the first, same seeds"]
    return [*markdown.table(heading, rows), "", _ran_on(runs)]


def _command(run: Run) -> str:
    varied = run.description.get("varied")
    return f"{f'benchmarks.vary {varied}' if varied else 'train.py'} {command_options(run)}"


def seeds(*folders: Path) -> list[str]:
    """A row for each framework, a column for each seed.

    Raises:
        ValueError: a framework lacks one of the seeds.
    """
    runs = _read(folders)
    found = {
        framework: {run.options["seed"]: _last(run, "test_accuracy") for run in own}
        for framework, own in _by_framework(runs).items()
    }
    numbers = sorted(next(iter(found.values())))
    if any(sorted(by_seed) != numbers for by_seed in found.values()):
        raise ValueError("the frameworks' runs are not of the same seeds")
    accuracies = {framework: [by_seed[number] for number in numbers] for framework, by_seed in found.items()}
    rows = (
        [framework, *map(percent, shares), percent(statistics.mean(shares)), f"{100 * statistics.stdev(shares):.2f}"]
        for framework, shares in accuracies.items()
    )
    heading = ["", *(f"seed {number}" for number in numbers), "mean", "standard deviation"]
    differences = "; ".join(describe_differences(accuracies))
    return [*markdown.table(heading, rows), "", f"{differences}. {_ran_on(runs)}"]


def time_to_accuracy(*folders: Path) -> list[str]:
    """A row for each framework: the seconds that its runs took on the mean to the first epoch of a test accuracy, with
    the ratio to the first framework; empty where a run does not get there. Start-up and compiling are not in it."""
    runs = _read(folders)
    by_framework = _by_framework(runs)
    means = {framework: [_mean_seconds_to(own, level) for level in _LEVELS] for framework, own in by_framework.items()}
    first = next(iter(means.values()))
    rows = []
    for framework, own in by_framework.items():
        epoch = statistics.median(record["seconds"] for run in own for record in run.epochs)
        cells = (
            "" if mean is None or reference is None else f"{mean:.0f} s ({mean / reference:.1f})"
            for mean, reference in zip(means[framework], first, strict=True)
        )
        rows.append([framework, str(len(own)), f"{epoch:.1f} s", *cells])
    heading = ["", "seeds", "an epoch, median", *(f"to {percent(level, 0)}" for level in _LEVELS)]
    return [*markdown.table(heading, rows), "", _ran_on(runs)]


def _by_framework(runs: list[Run]) -> dict[str, list[Run]]:
    """In the order in which they come."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.description.get("framework", "JAX"), []).append(run)
    return found


def _mean_seconds_to(runs: list[Run], level: float) -> float | None:
    """None where one of the runs has no epoch of that test accuracy."""
    found = []
    for run in runs:
        seconds = itertools.accumulate(record["seconds"] for record in run.epochs)
        reached = (each for each, record in zip(seconds, run.epochs, strict=True) if record["test_accuracy"] >= level)
        found.append(next(reached, None))
    times = [each for each in found if each is not None]
    return statistics.mean(times) if len(times) == len(runs) else None


def _read(folders: tuple[Path, ...]) -> list[Run]:
    return [read_run(folder) for folder in folders]


def _last(run: Run, key: str) -> float:
    if run.last is None:
        raise ValueError(f"{run.folder}: no epoch is done")
    return run.last[key]


def _accuracy(run: Run) -> str:
    """With Wilson's interval."""
    share, count = _last(run, "test_accuracy"), run.description["test_images"]
    low, high = wilson_interval(round(share * count), count)
    return f"{percent(share)} ({100 * low:.2f} to {100 * high:.2f})"


def command_options(run: Run) -> str:
    """The options that make this net and recipe: those of the recipe that is nearest, and what differs from it."""
    size = run.options["net_size"]
    # Runs of earlier versions lack the options that came later.
    chosen = vars(TrainingOptions()) | run.options
    ways = []
    for name, values in RECIPES.items():
        defaults = vars(TrainingOptions(**values)) | {"dataset": TaskOptions().dataset}
        way = [] if name == "published" else [f"--recipe {name}"]
        way += [f"--{option} {chosen[option]}" for option, default in defaults.items() if chosen[option] != default]
        ways.append(way)
    return " ".join([f"--net_size {size}", *min(ways, key=len)])


def _ran_on(runs: list[Run]) -> str:
    """The data and the versions, as far as all agree."""
    sources = {f"{run.options['dataset']}, {run.description['test_images']:,} test images" for run in runs}
    found: dict[str, set[str]] = {}
    for run in runs:
        for name in _PACKAGES:
            if name in run.description["versions"]:
                found.setdefault(name, set()).add(run.description["versions"][name])
    shown = {name: " and ".join(sorted(numbers)) for name, numbers in found.items()}
    devices = sorted({run.description["device"] for run in runs})
    return f"{'; '.join(sorted(sources))}; {' and '.join(devices)}; {markdown.versions(shown)}."
