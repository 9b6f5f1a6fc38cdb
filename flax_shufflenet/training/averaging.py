"""Exponential moving averages of a net over the steps of its training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


class Averages(NamedTuple):
    """Exponential moving averages, over the steps, of the parameters and of the batch statistics."""

    parameters: list[Array]
    statistics: list[Array]


def update_averages(
    averages: Averages, parameters: list[Array], statistics: list[Array], *, decay: float, step: Int32[Array, ""]
) -> Averages:
    """The averages after step ``step``, counted from 0.

    The running statistics are averaged as the parameters are, as TensorFlow's EfficientNet, timm's ModelEma and
    PyTorch's ``AveragedModel(use_buffers=True)`` do: the averaged weights are those of neighbouring steps, whose
    statistics are near each other, and Cai et al. (https://arxiv.org/abs/2101.07525) found the average better than
    the last step's. To compute them anew, as stochastic weight averaging does for weights that are epochs apart,
    would cost a pass over the training images before each test. Counts of batches are the last step's.

    At first the decay is (1 + step) / (10 + step), as in TensorFlow's ``ExponentialMovingAverage``, so that random
    initial weights are soon forgotten.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))

    def update(average: Array, value: Array) -> Array:
        return average * kept + value * (1 - kept) if jnp.issubdtype(value.dtype, jnp.floating) else value

    return jax.tree.map(update, averages, Averages(parameters, statistics))
