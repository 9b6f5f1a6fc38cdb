"""A tiny streamed run; as a program it is killed without warning: ``FOLDER OUT STEP``, in the middle of that step.

The numbers of the processes that read its images are printed first.
"""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flax_shufflenet import Architecture
from flax_shufflenet.training import loop
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.program import Program
from tests.net_tools import new_net

ARCHITECTURE = Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=2)
# 3 steps in each of 2 epochs; 2 of the 14 training images are left over.
OPTIONS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "image_size": 8,
    "learning_rate": 0.01,
    "random_erasing": 0.5,
    "ema": 0.9,
    "no_compilation_cache": True,  # conftest has one for all tests
}


def write_images(folder: Path, *, side: int, ending: str = ".png") -> Path:
    """Two classes with 7 training and 3 test images each, of noise, each of another shape."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 7), ("test", 3)):
        for name in ("dark", "bright"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (side + number, side + 3, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}{ending}")
    return folder


def train(folder: Path, out: Path, **options):
    """Trains a tiny net on the folder."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loop, "initial_model", lambda *_: (new_net(ARCHITECTURE), "tiny"))
        monkeypatch.setattr(loop, "try_report", lambda *_: None)  # it has tests of its own
        return loop.train(Config(dataset=str(folder), out=out, **OPTIONS | options))


def signal_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, the signal arrives while that step is under way."""
    original = Program.step

    def step_and_signal(self, state, order):
        if int(state.step) + 1 == step:
            signal.raise_signal(number)
        return original(self, state, order)

    monkeypatch.setattr(Program, "step", step_and_signal)


def main() -> None:
    folder, out, step = sys.argv[1:]
    original = Program.step

    def step_or_die(self, state, order):
        if int(state.step) + 1 == int(step):
            print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, state, order)

    Program.step = step_or_die
    train(Path(folder), Path(out), pipeline="stream")


if __name__ == "__main__":
    main()
