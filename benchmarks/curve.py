"""A short training run on one device or over a mesh: every step's loss, and what there is to compare."""

import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import tree_leaves

from benchmarks.collectives import Collectives, count_collectives
from flax_shufflenet import ShuffleNetV2
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.program import Program


class Curve(NamedTuple):
    """Each step's loss and the seconds it took, the arrays of the train state at the end, the test result, and the
    collectives of a step."""

    losses: list[float]
    seconds: list[float]
    state: list[np.ndarray]
    evaluation: Evaluation
    collectives: dict[str, Collectives]


def train_curve(model: ShuffleNetV2, config: Config, dataset: AnyDataset, mesh: Mesh | None) -> Curve:
    """Trains a net as ``train.py`` does; ``mesh`` None is one device. ``model`` is in train mode."""
    program = Program(model, config, dataset, mesh)
    compiled = program.compile()
    state, losses, seconds = program.initial, [], []
    for epoch in range(1, config.epochs + 1):
        order = program.order(epoch)
        for _ in range(program.steps_per_epoch):
            started = time.perf_counter()
            state, metrics = program.step(state, order)
            losses.append(float(metrics.loss))
            seconds.append(time.perf_counter() - started)
    program.feed.close()
    return Curve(
        losses,
        seconds,
        [_replica(leaf) for leaf in tree_leaves(state)],
        program.evaluate(state),
        count_collectives(compiled.as_text() or ""),
    )


def _replica(array: jax.Array) -> np.ndarray:
    """What every device holds.

    Raises:
        AssertionError: they hold different bits.
    """
    first, *others = (np.asarray(shard.data) for shard in array.addressable_shards)
    for other in others:
        np.testing.assert_array_equal(other, first)
    return first
