"""Random numbers of a run: independent streams of them, all drawn from its one seed.

Which numbers a step gets follows from the seed and the step alone. Processes that only read images import this
module: it has to stay light.
"""

import enum
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, Key


class Stream(enum.IntEnum):
    """What a stream is for."""

    ORDER = 0
    AUGMENTATION = 1
    ERASING = 2
    DROPOUT = 3


def step_key(seed: int, stream: Stream, number: int | Int[Array, ""]) -> Key[Array, ""]:
    """The key of step, or of epoch, ``number`` in a stream."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), int(stream)), number)


@partial(jax.jit, static_argnames=("seed", "count"))
def epoch_order(seed: int, epoch: int | Int[Array, ""], count: int) -> Int32[Array, " count"]:
    """The order in which epoch ``epoch``, counted from 0, goes through ``count`` images."""
    return jax.random.permutation(step_key(seed, Stream.ORDER, epoch), jnp.arange(count, dtype=jnp.int32))
