"""One step on two devices, with one kind of batch statistics, against PyTorch: ``PATH synchronised|per_device``.

Saves the largest relative difference in float64 from one net that sees the whole batch, and from two nets, each with
its half, whose gradients are averaged.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import torch

from benchmarks import training_parity as parity
from flax_shufflenet import seed
from flax_shufflenet.training import devices

NARROW = {"stage_widths": (8, 12, 16), "stage_blocks": (0, 1, 0), "stem_width": 4, "last_width": 8}


def main() -> None:
    path, statistics = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    case = parity.make_case("seed", dataclasses.replace(seed(0.5), **NARROW))
    case = case._replace(config=dataclasses.replace(case.config, batch_statistics=statistics))
    ours = parity.jax_step(case, jnp.float64, devices.make_mesh())
    theirs = [parity.torch_step(case, torch.float64, replicas=replicas) for replicas in (1, 2)]
    Path(path).write_text(json.dumps([parity.compare(ours, step).largest for step in theirs]))


if __name__ == "__main__":
    main()
