"""Training on many devices: every device holds the state and the data, and works on its part of a batch.

``jit`` maps a function over the devices of a mesh (``jax.shard_map``): each computes for itself, and what they tell
each other the function says, by ``average`` and ``total`` here and by the ``axis_name`` of the net's layers. With one
device there is no mesh (``None``), and nothing here does anything.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Int32

from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.layers import BatchNorm, Dropout
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.ops import divided
from flax_shufflenet.training.config import Config

BATCH_AXIS = "batch"

REPLICATED, DIVIDED = PartitionSpec(), PartitionSpec(BATCH_AXIS)
"""Where an array of ``jit`` lies: whole on every device, or each device's part of a batch on it."""

Tree = TypeVar("Tree")
MemoryStats = Mapping[str, int]
Specs = PartitionSpec | tuple[PartitionSpec, ...]


def make_mesh() -> Mesh | None:
    """All devices of all processes in a row; None where there is only one."""
    count = jax.device_count()
    return None if count == 1 else jax.make_mesh((count,), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, largest: int, mesh: Mesh | None) -> None:
    """Every device gets as many images of a batch as every other.

    Raises:
        OptionError: the devices' number does not divide ``batch_size``; the message names the nearest that it does
            divide, of those up to ``largest``.
    """
    count = 1 if mesh is None else mesh.size
    if batch_size % count == 0:
        return
    nearest = max(1, min(math.floor(batch_size / count + 0.5), largest // count)) * count
    raise OptionError(f"--batch_size must be a multiple of {count}, the number of devices, such as {nearest}")


def check_memory(needed: int, stats: MemoryStats | None, advice: str) -> None:
    """``needed`` bytes of images have to fit into a device that has these ``memory_stats``; some devices have none.
    ``advice`` says what to do where they do not.

    Raises:
        TrainingError: they do not, whatever else is to lie there.
    """
    if not stats or "bytes_limit" not in stats:
        return
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if needed > free:
        raise TrainingError(
            f"the images take {needed / 1e9:.2f} GB, and the device has {free / 1e9:.2f} GB free: all lie there while "
            f"training; {advice}"
        )


def place_batch(array: np.ndarray, mesh: Mesh | None) -> Array:
    """A batch, of which each process has its own rows, in order, divided among the devices. It is copied: what it was
    read into may be used again."""
    if mesh is None:
        return jax.numpy.array(array)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, DIVIDED), np.array(array))


def batch_template(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None) -> jax.ShapeDtypeStruct:
    """What ``place_batch`` makes of a whole batch of this shape."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=None if mesh is None else NamedSharding(mesh, DIVIDED))


def own_rows(batch_size: int, mesh: Mesh | None) -> Int[np.ndarray, " n"]:
    """The rows of a batch that this process's devices work on, in order."""
    rows = np.arange(batch_size)
    if mesh is None:
        return rows
    parts = NamedSharding(mesh, DIVIDED).addressable_devices_indices_map((batch_size,))
    return np.sort(np.concatenate([rows[index] for index in parts.values()]))


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The same arrays on every device of the mesh; every process has to have the same values."""
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, REPLICATED)

    def on_all_devices(leaf: Any) -> Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(on_all_devices, tree)


def jit(
    function: Callable[..., Any],
    mesh: Mesh | None,
    *,
    inputs: Specs = REPLICATED,
    outputs: Specs = REPLICATED,
    **options: Any,
) -> jax.stages.Wrapped:
    """``jax.jit`` of a function that each device runs with its part of what is divided.

    ``inputs`` and ``outputs`` say what that is, for all arrays or for each. What comes out divided is then brought
    together: in the end all results are replicated.
    """
    if mesh is None:
        return jax.jit(function, **options)
    # Under check_vma JAX adds up the devices' gradients by itself, each on its own; here they are exchanged together.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return jax.jit(mapped, out_shardings=NamedSharding(mesh, REPLICATED), **options)


def divide(model: ShuffleNetV2, config: Config, mesh: Mesh | None) -> ShuffleNetV2:
    """The net, in train mode, that each device of the mesh runs in a function that ``jit`` maps.

    It is synchronised as ``config.batch_statistics`` says; what is dropped of the features is always that of the whole
    batch.
    """
    if mesh is None:
        return model
    layers = (Dropout, BatchNorm) if config.batch_statistics == "synchronised" else Dropout
    return nnx.view(model, only=layers, axis_name=BATCH_AXIS)


# --- in a function that ``jit`` maps


def own_part(tree: Tree) -> Tree:
    """Of arrays with a row for each image of the whole batch, those of this device's images."""
    return jax.tree.map(lambda whole: divided.own_rows(whole, _axis_name()), tree)


def whole_count(own: int) -> int:
    """The images of the whole batch, of which each device has ``own``."""
    return divided.whole_count(own, _axis_name())


def average(tree: Tree) -> Tree:
    """Of each value over all devices."""
    return divided.average(tree, _axis_name())


def total(count: Int32[Array, ""]) -> Int32[Array, ""]:
    """The sum over all devices."""
    axis_name = _axis_name()
    return count if axis_name is None else jax.lax.psum(count, axis_name)


def _axis_name() -> str | None:
    return BATCH_AXIS if BATCH_AXIS in jax.sharding.get_abstract_mesh().manual_axes else None
