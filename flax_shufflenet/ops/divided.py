"""A batch that is divided among devices: what they tell each other under ``jax.shard_map``.

``axis_name`` is the mesh axis over which it is divided, as in ``flax.nnx.BatchNorm``; with None there is one device, or
each keeps to itself. All devices have equally many images. Nothing here is to be differentiated: the transpose of a sum
over devices depends on what is differentiated, one device's result or the sum of all.
"""

from typing import TypeVar

from jax import lax
from jaxtyping import Array, Shaped

Tree = TypeVar("Tree")


def average(tree: Tree, axis_name: str | None) -> Tree:
    """Of each value over all devices."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def own_rows(whole: Shaped[Array, "all ..."], axis_name: str | None) -> Shaped[Array, "n ..."]:
    """Of an array with a row for each image of the whole batch, those of this device's images."""
    if axis_name is None:
        return whole
    n = len(whole) // lax.axis_size(axis_name)
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(axis_name) * n, n)


def whole_count(own: int, axis_name: str | None) -> int:
    """How many there are on all devices together, where there are ``own`` on each."""
    return own if axis_name is None else own * lax.axis_size(axis_name)
