"""From the start of ``train.py`` to its first step, cold and warm: ``python -m benchmarks.startup``.

Learns the handwritten digits with a compilation cache of its own, empty at first, and is ended once the step is there.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.resume import Run


def seconds_to_first_step(folder: Path, number: int) -> float:
    """Of one start. The cache in ``folder`` is there for the next one."""
    run = Run(folder / f"run{number}", folder / "cache", 1)
    run.wait_for("training", "saving")
    seconds = time.time() - run.started
    run.process.kill()
    run.end()
    return seconds


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--starts", type=int, default=4, help="how many, the first of them cold (default 4)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.starts):
            seconds = seconds_to_first_step(Path(folder), number)
            print(f"{'warm' if number else 'cold'}  {seconds:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
