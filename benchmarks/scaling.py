"""What data parallelism costs on up to 256 TPU v5e chips: train.py's step compiled ahead of time, its time predicted.

    .venv-aot/bin/pip install -e '.[train]'
    JAX_PLATFORMS=cpu .venv-aot/bin/python -m benchmarks.scaling --json results/scaling_v5e.json

The environment is that of ``benchmarks.aot``, and as there nothing is run. Compiled is the step that train.py runs on
CIFAR-10 in float32, size 1.0, with both kinds of batch statistics; the JSON has the compiler's counts for one chip.
What follows from them and from v5e's published figures, ``predict`` says. Compiling takes about a minute for each of 8
programs on two cores.
"""

import argparse
import datetime
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

import flax_shufflenet as fs
from benchmarks.aot import compile_ahead, figures_of
from benchmarks.collectives import Collectives
from benchmarks.report import commit
from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.functional import split
from flax_shufflenet.images.preprocessing import CIFAR_STATISTICS
from flax_shufflenet.system.versions import versions
from flax_shufflenet.training import devices
from flax_shufflenet.training.batches import as_rows
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.optimizer import make_optimizer
from flax_shufflenet.training.step import initial_state, make_train_step

# Published: https://cloud.google.com/tpu/docs/v5e. FLOP/s of bfloat16 products, which XLA's are by default for float32
# too; bytes/s of memory; bytes/s that a chip sends over each of its four links (1,600 Gbit/s for all).
PEAK_FLOPS = 197e12
MEMORY_BANDWIDTH = 819e9
LINK_BANDWIDTH = 50e9
# Four units of 128x128 products and sums a cycle make up the peak.
CLOCK = PEAK_FLOPS / (4 * 128 * 128 * 2)
# Assumed, not published: about 1 us, says https://jax-ml.github.io/scaling-book/sharding.
SECONDS_PER_HOP = 1e-6

# The chips of a slice stand in a rectangle, each linked to its neighbours; a side of 16 is closed to a ring.
_SLICES = {8: (2, 4), 64: (8, 8), 256: (16, 16)}
_RING = 16
_SIZE = 1.0
_BATCH = 128
# Another batch on one chip tells what of a step grows with the batch.
_SMALLER_BATCH = 32
_CIFAR_IMAGES = 50_000

_STARTED = re.compile(r" (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)-start\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Prediction(NamedTuple):
    """Seconds of a step that was never run: to compute, and to exchange, a time for each collective and one for each
    byte. Neither goes on during the other, so that they add up."""

    computation: float
    latency: float
    transfer: float

    @property
    def communication(self) -> float:
        return self.latency + self.transfer


def predict(row: dict[str, Any]) -> Prediction:
    """From a row of the JSON: every operation at the peak or every byte at the memory's speed, whichever is slower;
    each collective takes as long as a number on its way between the two chips farthest apart; and of its bytes each
    chip sends 2 (n - 1) / n."""
    chips, exchanged = row["chips"], all_collectives(row)
    return Prediction(
        max(row["flops"] / PEAK_FLOPS, row["bytes_accessed"] / MEMORY_BANDWIDTH),
        exchanged.number * hops(chips) * SECONDS_PER_HOP,
        exchanged.bytes * 2 * (chips - 1) / chips / (_links(chips) * LINK_BANDWIDTH),
    )


def all_collectives(row: dict[str, Any]) -> Collectives:
    """Of a step, whatever their kind."""
    kinds = row["collectives"].values()
    return Collectives(sum(some["number"] for some in kinds), sum(some["bytes"] for some in kinds))


def hops(chips: int) -> int:
    """Links between the two chips of a slice that are farthest apart."""
    return sum(side // 2 if side == _RING else side - 1 for side in _SLICES.get(chips, ()))


def _links(chips: int) -> int:
    """Of the chip that has fewest: those in the corners have no neighbour on two sides, unless these are rings."""
    return sum(2 if side == _RING else 1 for side in _SLICES.get(chips, (1,)))


# --- compiling


class Case(NamedTuple):
    """A step to compile; ``batch`` is that of one chip."""

    chips: int
    batch: int
    batch_statistics: Literal["synchronised", "per_device"]


def cases() -> Iterator[Case]:
    for batch in (_SMALLER_BATCH, _BATCH):
        yield Case(1, batch, "synchronised")
    for chips in _SLICES:
        yield Case(chips, _BATCH, "synchronised")
        yield Case(chips, _BATCH, "per_device")


def compile_case(case: Case) -> dict[str, Any]:
    """A row of the JSON."""
    config = Config(batch_size=case.batch * case.chips, batch_statistics=case.batch_statistics)
    # A slice of one chip has no topology of its own.
    sides = _SLICES.get(case.chips, (2, 2))
    topology = topologies.get_topology_desc(platform="tpu", topology_name=f"v5e:{'x'.join(map(str, sides))}")
    mesh = jax.make_mesh(
        (case.chips,), (devices.BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=topology.devices[: case.chips]
    )
    model = fs.ShuffleNetV2(fs.seed(_SIZE), rngs=nnx.Rngs(0))
    step, arguments = train_step(model, config, _cifar(), mesh)
    started = time.perf_counter()
    compiled = compile_ahead("tpu", step, arguments)
    seconds = time.perf_counter() - started
    text = compiled.as_text() or ""
    figures = figures_of(compiled, seconds)
    return (
        case._asdict()
        | figures._asdict()
        | {
            "collectives": {kind: some._asdict() for kind, some in figures.collectives.items()},
            "asynchronous_collectives": len(_STARTED.findall(text)),
            "estimated_cycles": sum(map(int, _CYCLES.findall(text))),
        }
    )


def train_step(
    model: fs.ShuffleNetV2, config: Config, dataset: Dataset, mesh: Mesh
) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """The step that ``flax_shufflenet.training.program`` makes of these, and the shapes of what it takes, on devices
    that need not be there."""
    several = mesh if mesh.size > 1 else None
    network, parameters, statistics = split(devices.divide(model, config, several))
    optimizer = make_optimizer(config, config.epochs * (len(dataset.train_labels) // config.batch_size))
    state = initial_state(parameters, statistics, optimizer)
    order = jax.ShapeDtypeStruct(dataset.train_labels.shape, jnp.int32)
    placed = NamedSharding(mesh, devices.REPLICATED)
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
        (state, as_rows(dataset.train_images), dataset.train_labels, order),
    )
    return make_train_step(network, optimizer, config, dataset, mesh=several), arguments


def _cifar() -> Dataset:
    """As large as CIFAR-10."""
    mean, std = CIFAR_STATISTICS["cifar10"]
    return Dataset(
        name="cifar10",
        source="",
        train_images=np.broadcast_to(np.uint8(0), (_CIFAR_IMAGES, 32, 32, 3)),
        train_labels=np.zeros(_CIFAR_IMAGES, np.int32),
        test_images=np.zeros((1, 32, 32, 3), np.uint8),
        test_labels=np.zeros(1, np.int32),
        class_names=tuple(map(str, range(10))),
        mean=mean,
        std=std,
        flip=True,
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    path = parser.parse_args().json
    report: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.scaling"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "versions": versions("jax", "jaxlib", "libtpu", "flax", "optax"),
        "size": _SIZE,
        "dtype": "float32",
        "rows": [],
    }
    for case in cases():
        print(f"compiling for {case}", file=sys.stderr)
        try:
            report["rows"].append(compile_case(case))
        except Exception as error:  # most likely libtpu is not installed
            print(f"benchmarks.scaling: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            return 1
        path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
