"""What ``benchmarks.scaling`` compiles is train.py's step, and what it predicts follows from the counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import flax_shufflenet as fs
from benchmarks import scaling
from flax_shufflenet.training import devices
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.program import Program
from tests.training.random_data import random_dataset

ARCHITECTURE = fs.Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)


def net():
    return fs.ShuffleNetV2(ARCHITECTURE, rngs=nnx.Rngs(0))


def test_what_is_compiled_is_the_step_of_a_run():
    config, dataset = Config(batch_size=4, epochs=2), random_dataset(10)
    program = Program(net(), config, dataset)
    program.compile()
    chip = Mesh(np.array(jax.devices()[:1]), (devices.BATCH_AXIS,))
    step, shapes = scaling.train_step(net(), config, dataset, chip)
    order = program.order(1)
    arguments = (jax.tree.map(jnp.copy, program.initial), *program.feed.arguments(order))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), arguments
    )
    jax.tree.map(np.testing.assert_array_equal, step(*arguments), program.step(program.initial, order))


def predicted(chips, number=0, size=0):
    exchanged = {"all-reduce": {"number": number, "bytes": size}} if number else {}
    return scaling.predict({"chips": chips, "flops": 197e9, "bytes_accessed": 1638e6, "collectives": exchanged})


def test_one_chip_only_computes_as_fast_as_its_memory():
    assert predicted(1) == pytest.approx((2e-3, 0, 0))


@pytest.mark.parametrize(
    ("chips", "hops", "links"),
    [(8, 1 + 3, 2), (64, 7 + 7, 2), (256, 8 + 8, 4)],  # of 256 chips the rows and columns are rings
)
def test_exchanging_takes_the_longest_way_and_the_fewest_links(chips, hops, links):
    expected = (2e-3, 10 * hops * 1e-6, 1e6 * 2 * (chips - 1) / chips / (links * 50e9))
    assert predicted(chips, 10, 10**6) == pytest.approx(expected)
