"""From the start of ``train.py`` to its first step, cold and warm: ``python -m benchmarks.startup``.

Learns the handwritten digits (size 0.5, batch 64) with a compilation cache of its own, empty at first, and is ended
after the first epoch. The memory is the process's peak up to then. Needs Linux.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.resume import Run


def start(folder: Path, number: int) -> tuple[float, int]:
    """Seconds to the first step, and the peak of the memory in bytes; the cache in ``folder`` is there for the next."""
    run = Run(folder / f"run{number}", folder / "cache", 2)
    run.wait_for("training", "saving")
    seconds = time.time() - run.started
    run.wait_for("saving")
    status = Path(f"/proc/{run.process.pid}/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    run.process.kill()
    run.end()
    return seconds, peak


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--starts", type=int, default=4, help="how many, the first of them cold (default 4)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.starts):
            seconds, peak = start(Path(folder), number)
            print(f"{'warm' if number else 'cold'}  {seconds:.1f} s  {peak / 1e6:,.0f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
