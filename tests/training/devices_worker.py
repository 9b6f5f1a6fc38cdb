"""Trains a tiny net in float64 on the devices that there are, and saves what came out: ``PATH COUNT ...``.

Each COUNT is a number of devices, which are the first ones; there the classifier is also trained alone. As one of
several processes: ``PATH COORDINATOR NUM_PROCESSES PROCESS_ID``, on all devices of all of them; process 0 saves.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from benchmarks.curve import train_curve
from flax_shufflenet import Architecture
from flax_shufflenet.training import devices, processes
from flax_shufflenet.training.config import Config
from tests.net_tools import new_net
from tests.training.random_data import random_dataset

ARCHITECTURE = Architecture(
    stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3, dropout=0.1
)
TRAIN_IMAGES = 48
RECIPE: dict[str, Any] = {
    "batch_size": 24,
    "epochs": 3,
    "learning_rate": 0.05,
    "optimizer": "muon",
    "random_erasing": 0.5,
    "ema": 0.9,
}


FROZEN: dict[str, Any] = {"freeze": "backbone", "init": Path("net")}


def run(config: Config, mesh: jax.sharding.Mesh | None) -> dict:
    model = new_net(ARCHITECTURE, dtype=jnp.float64)
    model.classifier.kernel[...] *= 100  # so that the loss depends on all of the net
    curve = train_curve(model, config, random_dataset(TRAIN_IMAGES), mesh)
    return {
        "losses": curve.losses,
        "state": np.concatenate([leaf.ravel() for leaf in curve.state]).tolist(),
        "evaluation": curve.evaluation,
        "collectives": curve.collectives,
    }


def main() -> None:
    path, first, *rest = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    if rest and ":" in first:
        config = Config(coordinator=first, num_processes=int(rest[0]), process_id=int(rest[1]), **RECIPE)
        processes.join(config)
        results = [run(config, devices.make_mesh())]
    else:
        meshes = [
            jax.make_mesh((count,), (devices.BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
            if count > 1
            else None
            for count in map(int, (first, *rest))
        ]
        results = [run(Config(**RECIPE | options), mesh) for options in ({}, FROZEN) for mesh in meshes]
    if processes.is_first_process():
        Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
