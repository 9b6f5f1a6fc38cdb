"""``python -m benchmarks.resume``: a run that is killed 20 times must end with the same bits as one left alone.

Both learn the handwritten digits with the same options. One is never disturbed; the other is ended at random moments,
half of the time with SIGKILL and else with SIGTERM or SIGINT, and started again with the same command. At the end the
nets' files, every array of the last checkpoints and the metrics but for their times are compared, byte by byte. The
last start compiles everything anew. Exit code 1 where anything differs.
"""

import argparse
import collections
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMES = ("images_per_second", "seconds")
GRACEFUL = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Run:
    """``train.py`` as a process, and what can be seen of it from outside."""

    def __init__(self, out: Path, cache: Path, epochs: int, *options: str) -> None:
        self.out = out
        self.started = time.time()
        # A shell's background job ignores interrupts and passes that on; this process's child shall not.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        given = {"dataset": "digits", "net_size": 0.5, "batch_size": 64, "epochs": epochs, "out": out}
        self.process = subprocess.Popen(
            [sys.executable, "train.py", *(f"--{name}={value}" for name, value in given.items()), *options],
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        signal.signal(signal.SIGINT, before)

    def phase(self) -> str:
        if not self._is_new(self.out / "metrics.jsonl"):  # written anew once the step is compiled
            return "start-up"
        # A folder that an earlier kill left is being removed, which changes it, but puts no new files into it.
        unfinished = self.out.glob("checkpoints/*tmp*/**/*")
        return "saving" if any(path.is_file() and self._is_new(path) for path in unfinished) else "training"

    def _is_new(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime > self.started
        except FileNotFoundError:  # in this very moment, perhaps
            return False

    def wait_for(self, *phases: str, seconds: float = math.inf) -> None:
        """Until one of these phases, the end, or at most so long."""
        latest = time.time() + seconds
        while self.process.poll() is None and self.phase() not in phases and time.time() < latest:
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        """The exit code, and all that was printed, once the process has ended."""
        output, _ = self.process.communicate()
        return self.process.returncode, output


def newest_step(out: Path) -> int:
    return max((int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()), default=0)


def disturbed_run(out: Path, cache: Path, epochs: int, kills: int, startup: float, rng: random.Random) -> list[str]:
    """Ends and goes on with a run ``kills`` times, then lets it finish. Prints each kill; returns what went wrong."""
    problems, landed = [], collections.Counter()
    plan = [signal.SIGKILL] * (kills // 2) + [rng.choice(list(GRACEFUL)) for _ in range(kills - kills // 2)]
    rng.shuffle(plan)
    print(f"\n{'kill':>4}  {'signal':<8} {'landed in':<10} {'exit':>4}  steps saved")
    for number, sent in enumerate(plan, 1):
        run = Run(out, cache, epochs)
        aim = rng.choice(["start-up", "training", "training", "saving"])
        if aim == "start-up":
            run.wait_for("training", seconds=rng.uniform(0, startup))
        elif aim == "training":
            run.wait_for("training", "saving")
            time.sleep(rng.uniform(0, 4))
        else:
            run.wait_for("saving")
            time.sleep(rng.uniform(0, 0.03))
        phase = run.phase()
        if run.process.poll() is not None:
            problems.append(f"start {number} ended by itself:\n{run.end()[1]}")
            break
        run.process.send_signal(sent)
        code, output = run.end()
        landed[phase] += 1
        print(f"{number:>4}  {sent.name:<8} {phase:<10} {code:>4}  {newest_step(out)}", flush=True)
        # Before Python has set its handlers up, a signal ends any program by itself.
        if code not in (-sent, GRACEFUL.get(sent)) or "Traceback" in output or "damaged" in output:
            problems.append(f"kill {number} ({sent.name}): exit code {code}, and it said:\n{output}")
    print("landed in " + ", ".join(f"{phase}: {count}" for phase, count in landed.most_common()))
    code, output = Run(out, cache, epochs, "--no_compilation_cache").end()
    if code:
        problems.append(f"the last start: exit code {code}, and it said:\n{output}")
    return problems


def last_arrays(out: Path) -> dict[str, bytes]:
    """Every array of the newest checkpoint, by its path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((out / "checkpoints").resolve()) as manager:
        state = manager.restore(newest_step(out), args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(state)}


def untimed_metrics(out: Path) -> list[dict[str, Any]]:
    first, *epochs = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    first["config"].pop("out")
    return [first, *({key: value for key, value in epoch.items() if key not in TIMES} for epoch in epochs)]


def differences(one: Path, other: Path) -> list[str]:
    found = []

    def compare(what: str, first: object, second: object) -> None:
        print(f"{what:<46}{'the same' if first == second else 'DIFFERENT'}")
        if first != second:
            found.append(what)

    print()
    for name in ("net.safetensors", "best.safetensors"):
        compare(f"{name}, all bytes", (one / name).read_bytes(), (other / name).read_bytes())
    arrays, others = last_arrays(one), last_arrays(other)
    compare(f"checkpoint {newest_step(one)}, {len(arrays)} arrays, all bytes", arrays, others)
    metrics = untimed_metrics(one)
    compare(f"metrics.jsonl, {len(metrics)} lines, but for times", metrics, untimed_metrics(other))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, disturbed, cache = (Path(folder) / name for name in ("alone", "disturbed", "cache"))
        run = Run(alone, cache, arguments.epochs)
        run.wait_for("training")
        startup = time.time() - run.started
        code, output = run.end()
        print(output)
        if code:
            return 1
        rng = random.Random(arguments.seed)
        problems = disturbed_run(disturbed, cache, arguments.epochs, arguments.kills, startup, rng)
        if not problems:
            problems = differences(alone, disturbed)
    print("\n".join(problems) or f"after {arguments.kills} kills the same, bit for bit")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
