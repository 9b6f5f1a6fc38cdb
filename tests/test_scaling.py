"""What ``benchmarks.scaling`` compiles is train.py's step, and what it predicts follows from the counts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import flax_shufflenet as fs
from benchmarks import scaling
from benchmarks.tables import scaling as tables
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


def test_the_table_says_where_exchanging_takes_as_long_as_computing(tmp_path, monkeypatch):
    """Computing takes 1 ms and 0.01 ms for each image of a chip, exchanging 100 times 14 hops."""
    monkeypatch.setattr("benchmarks.tables.markdown.ROOT", tmp_path)
    exchanged = {"all-reduce": {"number": 100, "bytes": 0}}
    rows = [
        {
            "chips": chips,
            "batch": batch,
            "batch_statistics": "synchronised",
            "flops": 0,
            "bytes_accessed": (1e-3 + batch * 1e-5) * scaling.MEMORY_BANDWIDTH,
            "collectives": exchanged if chips > 1 else {},
            "estimated_cycles": 3e-3 * scaling.CLOCK,
        }
        for chips, batch in ((1, 25), (1, 100), (64, 100))
    ]
    report = {
        "rows": rows,
        "size": 1.0,
        "dtype": "float32",
        "commit": "0123",
        "date": "2026-01-01",
        "versions": {"jax": "1"},
    }
    (tmp_path / "found.json").write_text(json.dumps(report))
    *_, one, many, _, source = tables.predicted(tmp_path / "found.json")
    assert one == "| 1 | | | | 2.0 | 3.0 | | | | | |"
    # 1.4 ms are computed on 40 images; and 2 ms are 1,400 hops of 1.43 us.
    assert many == "| 64 | synchronised | 100 | 0.00 | 2.0 | 3.0 | 1.400 | 0.000 | 0.700 | 40 | 1.4 |"
    assert source.startswith(
        "TPU v5e, size 1.0, float32, batch 100 a chip: compiled and predicted, never run; commit `0123`"
    )
