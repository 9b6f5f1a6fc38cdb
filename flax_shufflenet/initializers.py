"""The PyTorch seed's initial weight distributions.

XLA needs about 0.2 s to compile a random draw, once for each shape, and a net has some 25 shapes. So normal
numbers are drawn in chunks of one shape, and NumPy cuts them to size.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

_CHUNK = 1 << 16


@partial(jax.jit, static_argnames="dtype")
def _normal_chunk(key: Key[Array, ""], index: int | Int[Array, ""], dtype: DTypeLike) -> Float[Array, " chunk"]:
    return jax.random.normal(jax.random.fold_in(key, index), (_CHUNK,), dtype)


def normal(
    key: Key[Array, ""] | None, shape: tuple[int, ...], std: float, dtype: DTypeLike
) -> Float[Array, "..."] | jax.ShapeDtypeStruct:
    """Independent normal numbers with mean 0; without a key, their shape and dtype alone."""
    if key is None:
        return jax.ShapeDtypeStruct(shape, dtype)
    size = math.prod(shape)
    chunks = [_normal_chunk(key, index, dtype) for index in range(-(-size // _CHUNK))]
    numpy = jnp if isinstance(key, Tracer) else np
    return jax.device_put(std * numpy.concatenate(chunks)[:size].reshape(shape))


def kaiming_normal(
    key: Key[Array, ""] | None, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "kh kw cin cout"] | jax.ShapeDtypeStruct:
    """``torch.nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu")`` of an HWIO kernel, not truncated.

    As in PyTorch, the fan-out of a grouped kernel counts all its output channels.
    """
    height, width, _, out_channels = shape
    return normal(key, shape, math.sqrt(2 / (height * width * out_channels)), dtype)


def constant(value: int, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """``value`` everywhere, made by NumPy: ``jnp.full`` and ``jnp.asarray`` compile a program for each shape."""
    return jax.device_put(np.full(shape, value, dtype))
