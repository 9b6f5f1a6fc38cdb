"""Nets with NumPy's random numbers, in a tenth of the time: JAX compiles a program for each kind of its own.

For tests of what becomes of a net, and for the processes that they start.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flax_shufflenet import Architecture, ShuffleNetV2
from flax_shufflenet.weights import cast_floats, from_arrays, shapes


@nnx.jit
def apply(model: ShuffleNetV2, images: jax.Array) -> jax.Array:
    """Compiled as one: one operation after the other would be compiled for seconds."""
    return model(images)


def new_net(architecture: Architecture, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> ShuffleNetV2:
    """Like a new one: in train mode, with random kernels of the seed's distributions."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes(architecture).items():
        kind = name.rpartition(".")[2]
        if kind == "kernel":
            std = 0.01 if name == "classifier.kernel" else math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
            arrays[name] = std * random.standard_normal(shape)
        elif kind == "num_batches_tracked":
            arrays[name] = np.zeros(shape, np.int32)
        else:
            arrays[name] = np.full(shape, float(kind in ("scale", "var")))
    model = _from_floats(architecture, arrays, dtype)
    model.train()
    return model


def random_arrays(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights and statistics: fresh ones hide swaps of scales, biases, means and variances."""
    random = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, shape in shapes(architecture).items():
        if name.endswith((".var", ".scale")):
            arrays[name] = random.uniform(0.5, 2, shape)
        elif name.endswith("num_batches_tracked"):
            arrays[name] = np.array(3, np.int32)
        elif name.endswith("kernel"):
            arrays[name] = random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        else:
            arrays[name] = random.normal(0, 0.5, shape)
    return arrays


def random_net(architecture: Architecture, dtype: DTypeLike = jnp.float32) -> ShuffleNetV2:
    """In eval mode, of ``random_arrays``."""
    return _from_floats(architecture, random_arrays(architecture), dtype)


def _from_floats(architecture: Architecture, arrays: dict[str, np.ndarray], dtype: DTypeLike) -> ShuffleNetV2:
    return from_arrays(architecture, cast_floats(arrays, jnp.promote_types(dtype, jnp.float32)), dtype=dtype)
