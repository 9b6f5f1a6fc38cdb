"""One step on two devices, with each kind of batch statistics, against PyTorch: ``PATH``.

Saves for each kind the largest relative difference in float64 from one net that sees the whole batch, and from two
nets, each with its half, whose gradients are averaged.
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
    jax.config.update("jax_enable_x64", True)
    case = parity.make_case("seed", dataclasses.replace(seed(0.5), **NARROW))
    theirs = [parity.torch_step(case, torch.float64, replicas=replicas) for replicas in (1, 2)]
    found = {}
    for statistics in ("synchronised", "per_device"):
        divided = case._replace(config=dataclasses.replace(case.config, batch_statistics=statistics))
        ours = parity.jax_step(divided, jnp.float64, devices.make_mesh())
        found[statistics] = [parity.compare(ours, step).largest for step in theirs]
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
