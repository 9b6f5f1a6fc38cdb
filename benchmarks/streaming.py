"""The memory that streaming takes: ``python -m benchmarks.streaming``; sets of two sizes, far larger than a limit.

``train.py`` learns scikit-learn's photographs (``benchmarks.photographs``) at 224x224 pixels for one epoch, with a net
of torchvision's family and size 0.5, and is told that the machine has four times ``--limit`` MB, so that images of no
more than the limit would be held in memory: one set is ten times as large, the other twenty times. The memory is the
highest sum, over the run, of the training process's and of those that read images for it (``Pss`` of Linux, where what
is shared counts once); ``--pipeline device`` is measured on the same sets beside it.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.photographs import write_folder

ROOT = Path(__file__).parents[1]
_SIDE = 224
_OPTIONS = ("--family", "torchvision", "--net_size", "0.5", "--image_size", str(_SIDE), "--epochs", "1")
_BETWEEN_LOOKS = 0.2  # seconds

# A quarter of the memory may be taken by images.
_RUN = """
import sys
from flax_shufflenet.system import memory
memory.total = lambda: 4e6 * {limit}
from flax_shufflenet.commands.train import main
if __name__ == "__main__":
    sys.exit(main("train.py"))
"""


def _kept_by(process: int) -> int:
    """Bytes of memory that are this process's alone, or its part of what it shares; 0 where it has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return 0


def _family_of(process: int) -> list[int]:
    """The process and its children."""
    children = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, thread.read_text().split())
    return [process, *children]


def measure(folder: Path, limit: float, pipeline: str) -> tuple[str, int]:
    """The line in which the run says why it has its pipeline, and the peak of its memory in bytes.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory() as out:
        script = Path(out) / "run.py"
        script.write_text(_RUN.format(limit=limit))
        options = (
            "--dataset",
            folder,
            "--pipeline",
            pipeline,
            "--out",
            Path(out) / "run",
            "--batch_size",
            "16",
            *_OPTIONS,
        )
        run = subprocess.Popen(
            [sys.executable, script, *map(str, options)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        peak = 0
        while run.poll() is None:
            peak = max(peak, sum(map(_kept_by, _family_of(run.pid))))
            time.sleep(_BETWEEN_LOOKS)
        output, _ = run.communicate()
    if run.returncode:
        raise RuntimeError(output.splitlines()[-1])
    return next(line for line in output.splitlines() if line.startswith("images")), peak


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
    parser.add_argument("--limit", type=float, default=40, help="MB of decoded images that fit (default 40)")
    arguments = parser.parse_args()
    for times in (10, 20):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "photographs"
            tiles = write_folder(Path(name) / "once") * _SIDE**2 * 3 / 1e6
            write_folder(folder, copies=round(times * arguments.limit / tiles))
            for pipeline in ("auto", "device"):
                said, peak = measure(folder, arguments.limit, pipeline)
                print(f"{times} times the limit  peak {peak / 1e6:,.0f} MB  {' '.join(said.split()[1:])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
