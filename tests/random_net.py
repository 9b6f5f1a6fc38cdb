"""Nets like new ones in a tenth of the time: JAX compiles a program for each kind of random number, and NumPy does not.

For tests of what becomes of a net, and for the processes that they start.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flax_shufflenet import Architecture, ShuffleNetV2
from flax_shufflenet.weights import cast_floats, from_arrays, shapes


def random_net(architecture: Architecture, *, dtype: DTypeLike = jnp.float32, seed: int = 0) -> ShuffleNetV2:
    """In train mode, with random kernels of the seed's distributions."""
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
    model = from_arrays(architecture, cast_floats(arrays, jnp.promote_types(dtype, jnp.float32)), dtype=dtype)
    model.train()
    return model
