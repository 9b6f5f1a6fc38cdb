"""How fast images come: ``python -m benchmarks.input_path``; the input path alone against the whole train step.

The input path is what the step does before the net: indices, gather, crop, flip and normalisation, jitted on the
device. Random images of CIFAR's size and number; a train step is timed for as long as it takes to be sure of it.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_shufflenet as fs
from benchmarks.worker import median_seconds
from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.system import allocator
from flax_shufflenet.training.batches import Batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.program import Program
from flax_shufflenet.training.random_streams import epoch_order

_BAR = 20  # times the train step's speed
_SECONDS = 4.0  # for each measurement
_IMAGES = 50_000


def random_dataset() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, _IMAGES, np.int32)
    names = tuple(map(str, range(10)))
    return Dataset(
        name="random",
        source="random numbers",
        train_images=images,
        train_labels=labels,
        test_images=images[:1],
        test_labels=labels[:1],
        class_names=names,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        flip=True,
    )


def measure(net_size: float, batch_size: int, dataset: Dataset) -> tuple[float, float]:
    """Images per second: of the input path alone, and of the whole train step."""
    config = Config(net_size=net_size, batch_size=batch_size)
    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    order = epoch_order(config.seed, 0, _IMAGES)
    batch = jax.jit(Batches.of(config, dataset).pick)
    numbers = iter(range(10**9))
    alone = median_seconds(lambda: jax.block_until_ready(batch(next(numbers), images, labels, order)), _SECONDS)

    program = Program(fs.ShuffleNetV2(fs.seed(net_size, 10), rngs=nnx.Rngs(0)), config, dataset)
    program.compile()
    state = program.initial

    def step() -> None:
        nonlocal state
        state, _ = program.step(state, order)
        jax.block_until_ready(state)

    return batch_size / alone, batch_size / median_seconds(step, _SECONDS)


def main() -> int:
    """Returns the exit code: 0 where every ratio reaches the bar, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--net_size", type=float, choices=(0.5, 1.0, 1.5, 2.0), default=0.5)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256])
    options = parser.parse_args()
    allocator.restart_with_fast_malloc()
    dataset = random_dataset()
    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, ShuffleNetV2 {options.net_size}, {_IMAGES:,} images"
    )
    print(f"{'batch':>6}{'input path, images/s':>23}{'train step, images/s':>23}{'ratio':>8}")
    ratios = []
    for batch_size in options.batches:
        alone, step = measure(options.net_size, batch_size, dataset)
        ratios.append(alone / step)
        print(f"{batch_size:6d}{alone:23,.0f}{step:23,.0f}{ratios[-1]:8.0f}", flush=True)
    print(f"bar: {_BAR} times the train step; {'reached' if min(ratios) >= _BAR else 'MISSED'}")
    return int(min(ratios) < _BAR)


if __name__ == "__main__":
    sys.exit(main())
