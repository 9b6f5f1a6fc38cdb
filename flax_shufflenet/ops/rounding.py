"""Rounding no more often than need be."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def inverse_std(var: Float[Array, " c"], epsilon: float) -> Float[Array, " c"]:
    """``1 / sqrt(var + epsilon)``, to the last bit or two.

    XLA's own rsqrt is an approximation on CPU (and replaces a written-out root). Its error is one and the same
    for all values of a channel, so it does not average out as rounding does, and it alone makes the net's
    float32 error twice PyTorch's. One step of Newton's method removes it.
    """
    var = var + epsilon
    estimate = lax.rsqrt(var)
    # "1 - product" in this form, so that it becomes one multiply-add, which rounds once.
    return estimate + estimate * (0.5 * (1 - var * estimate * estimate))


def accumulator(dtype: DTypeLike) -> jnp.dtype:
    """What sums of products are kept in: those of bfloat16 in float32."""
    return jnp.promote_types(dtype, jnp.float32)
