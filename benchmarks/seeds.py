"""JAX against PyTorch over several seeds: ``python -m benchmarks.seeds --data_dir DIR --out runs/seeds``.

Trains the same net by the same recipe in each framework, one run after the other, each in a process of its own, and
prints the table of the runs, then means, spreads and differences. An interrupted command, given again, goes on: runs
that are finished in OUT are not repeated, and an unfinished one is resumed.
"""

import argparse
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from flax_shufflenet.commands import compare
from flax_shufflenet.runs.run import Run, duration, percent, read_run

_ROOT = Path(__file__).parents[1]
# What each framework's program is started as, and the file that it writes when it is done.
_PROGRAMS = {
    "JAX": ([str(_ROOT / "train.py")], "net.safetensors"),
    "PyTorch": (["-m", "benchmarks.torch_train"], "net.pt"),
    "stock Flax": (["-m", "benchmarks.stock_train"], "net.npz"),
}


def folder_of(out: Path, framework: str, seed: int) -> Path:
    return out / f"{framework.lower().replace(' ', '_')}_seed{seed}"


def run_all(out: Path, frameworks: Sequence[str], seeds: Sequence[int], options: Sequence[str]) -> int:
    """Trains what is missing, seed by seed; returns the exit code of the first run that fails, or 0."""
    for seed in seeds:
        for framework in frameworks:
            program, done = _PROGRAMS[framework]
            folder = folder_of(out, framework, seed)
            if (folder / done).exists():
                print(f"\n{framework}, seed {seed}: finished in {folder}", flush=True)
                continue
            print(f"\n{framework}, seed {seed}", flush=True)
            command = [sys.executable, *program, *options, "--seed", str(seed), "--out", str(folder)]
            code = subprocess.run(command, check=False).returncode
            if code:
                return code
    return 0


def difference_interval(some: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of ``some`` less that of ``others``, at least two each, by Welch's test:
    their spreads may differ."""
    import scipy.stats  # here, as it takes a second, which other tables need not wait for

    with warnings.catch_warnings():
        # Of runs that all have one accuracy, which with few test images happens.
        warnings.filterwarnings("ignore", "Precision loss occurred in moment calculation", RuntimeWarning)
        interval = scipy.stats.ttest_ind(some, others, equal_var=False).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def describe_differences(accuracies: dict[str, list[float]]) -> list[str]:
    """How far the mean of the first framework lies above that of each other, in points."""
    first, *rest = accuracies
    return [_difference(first, accuracies[first], other, accuracies[other]) for other in rest]


def _difference(name: str, some: list[float], other: str, others: list[float]) -> str:
    apart = f"{name} less {other}: {100 * (statistics.mean(some) - statistics.mean(others)):+.2f} points"
    has_spread = len({*some}) > 1 or len({*others}) > 1
    if min(len(some), len(others)) < 2 or not has_spread:
        return apart
    low, high = difference_interval(some, others)
    return f"{apart}, 95 % confidence interval {100 * low:+.2f} to {100 * high:+.2f}"


def summary(runs: dict[str, list[Run]]) -> list[str]:
    """For each framework the mean, the standard deviation and the range of the last epoch's test accuracy; then their
    difference."""
    found = {framework: [run.last["test_accuracy"] for run in own if run.last] for framework, own in runs.items()}
    lines = []
    for framework, own in runs.items():
        accuracies = found[framework]
        speeds = [run.images_per_second for run in own if run.images_per_second]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
        lines.append(
            f"{framework:<10} test accuracy {percent(statistics.mean(accuracies))}, standard deviation "
            f"{percent(spread)}, {percent(min(accuracies))} to {percent(max(accuracies))} ({len(own)} seeds); "
            f"{duration(statistics.mean(run.seconds for run in own))} a run, {statistics.median(speeds):,.0f} images/s"
        )
    return [*lines, *describe_differences(found)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=("cifar10", "cifar100", "digits"), default="cifar10")
    parser.add_argument("--data_dir", type=Path, help="folder of TensorFlow Datasets (default: train.py's)")
    parser.add_argument("--net_size", type=float, choices=(0.5, 1.0, 1.5, 2.0), default=0.5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--frameworks", nargs="+", choices=tuple(_PROGRAMS), default=["JAX", "PyTorch"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="folder of the runs (default: runs/seeds)")
    return parser


def main() -> int:
    """Returns the exit code: that of a run that fails, otherwise 0."""
    given = _parser().parse_args()
    options = ["--dataset", given.dataset, "--net_size", str(given.net_size)]
    options += ["--epochs", str(given.epochs), "--batch_size", str(given.batch_size)]
    if given.data_dir:
        options += ["--data_dir", str(given.data_dir)]
    try:
        code = run_all(given.out, given.frameworks, given.seeds, options)
    except KeyboardInterrupt:
        code = 130
    if code:
        print("seeds: a run did not finish; the same command goes on with it", file=sys.stderr)
        return code
    runs = {name: [read_run(folder_of(given.out, name, seed)) for seed in given.seeds] for name in given.frameworks}
    print()
    compare.print_table(compare.name_runs([run for own in runs.values() for run in own]))
    print("\n".join(summary(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
