"""A batch that is divided among devices: what they tell each other under ``jax.shard_map``.

``axis_name`` is the mesh axis over which it is divided, as in ``flax.nnx.BatchNorm``; with None there is one device, or
each keeps to itself. All devices have equally many images. No average here is to be differentiated: the transpose of a
sum over devices depends on what is differentiated, one device's result or the sum of all.
"""

from typing import TypeVar

import jax
from jax import lax
from jaxtyping import Array, Shaped

Tree = TypeVar("Tree")


def vary_alike(tree: Tree) -> Tree:
    """The same arrays, all of the type of those that differ between devices, where JAX knows which do (check_vma). The
    gradients of those that do not, it then adds up over all devices."""
    leaves, structure = jax.tree.flatten(tree)
    axes = [jax.typeof(leaf).mat.varying for leaf in leaves]
    all_axes = frozenset().union(*axes)
    cast = [lax.pcast(leaf, tuple(all_axes - own), to="varying") for leaf, own in zip(leaves, axes, strict=True)]
    return jax.tree.unflatten(structure, cast)


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
