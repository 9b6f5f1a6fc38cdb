"""What ends a run, and what starts none."""

import jax.numpy as jnp
import pytest

from flax_shufflenet.training.config import Config, OptionError, TrainingError
from flax_shufflenet.training.loop import train
from flax_shufflenet.training.step import StepMetrics
from flax_shufflenet.training.totals import EpochTotals


def test_totals_are_means_over_the_images_of_the_steps_so_far():
    totals = EpochTotals(batch_size=8, epoch=1, epochs=2)
    totals.add(1, StepMetrics(jnp.float32(1.0), jnp.int32(2)))
    totals.add(2, StepMetrics(jnp.float32(2.0), jnp.int32(6)))
    assert totals.loss == 1.5
    assert totals.accuracy == 0.5


@pytest.mark.parametrize("loss", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(loss):
    totals = EpochTotals(batch_size=8, epoch=3, epochs=5)
    totals.add(100, StepMetrics(jnp.float32(1.0), jnp.int32(2)))
    with pytest.raises(FloatingPointError, match=rf"the loss is {loss} at step 101 \(epoch 3/5\)"):
        totals.add(101, StepMetrics(jnp.float32(loss), jnp.int32(0)))


def test_a_net_is_not_replaced_before_any_work_is_done(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"precious")
    with pytest.raises(TrainingError, match="--force"):
        train(Config(out=tmp_path, data_dir=tmp_path))  # there is no data either
    assert (tmp_path / "net.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "options",
    [
        {"net_size": 0.7},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -0.1},
        {"weight_decay": float("inf")},
        {"momentum": 1.0},
        {"seed": -1},
        {"seed": 2**31},
    ],
)
def test_values_out_of_range_name_their_option(options):
    with pytest.raises(OptionError, match=f"^--{next(iter(options))} must be "):
        Config(**options)
