"""The CPU engine: C++ that XLA calls (``jax.ffi``), found, checked and loaded when it is first needed.

Installing builds it, where there is a compiler. A build that is out of date, or made for another XLA, is not used;
``info`` says why.
XLA's own operations then compute the same.
"""

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from flax_shufflenet.ops.rounding import accumulator

FOLDER = Path(__file__).parent
HANDLERS = (
    "batch_norm_statistics",
    "batch_norm",
    "batch_norm_gradient_sums",
    "batch_norm_input_gradient",
    "depthwise",
    "depthwise_input_gradient",
    "depthwise_kernel_gradient",
    "stem",
    "stem_kernel_gradient",
    "pointwise_unit",
    "pointwise_unit_gradient",
    "depthwise_unit",
    "depthwise_unit_gradient",
    "join",
    "join_gradient",
    "inference_branch",
)


class Info(NamedTuple):
    """What computes on CPU."""

    engine: bool
    instructions: str
    """"avx512", "avx2" or "baseline"; "" without the engine."""
    why: str
    """Why the engine is not used; "" where it is."""


@cache
def info() -> Info:
    """What computes on CPU: the engine, built for which instructions, or XLA's own operations, and why."""
    try:
        instructions = _load()
    except _UnusableError as error:
        return Info(False, "", str(error))
    return Info(True, instructions, "")


class _UnusableError(Exception):
    """The engine cannot be used; the message says why, in a few words."""


def _load() -> str:
    best = _library("baseline").engine_instructions
    best.restype = ctypes.c_char_p
    instructions = best().decode()
    library = _library(instructions)
    library.engine_sources.restype = ctypes.c_char_p
    sources = sorted(path for path in (FOLDER / "engine").glob("*") if path.suffix in (".h", ".cc"))
    if sources:  # an installed wheel has none
        found = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
        if library.engine_sources().decode() != found:
            raise _UnusableError("it was built from other sources")
    try:
        for name in HANDLERS:
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
    except Exception as error:  # XLA checks the version of its interface here
        raise _UnusableError(f"this jaxlib refuses it: {str(error).splitlines()[0]}") from error
    return instructions


def _library(instructions: str) -> ctypes.CDLL:
    path = FOLDER / f"_engine_{instructions}.so"
    if not path.exists():
        raise _UnusableError("it was not built")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # such as one that was linked to a newer C++ library
        raise _UnusableError(f"this system cannot load it: {error}") from error


def _target(name: str) -> str:
    return f"flax_shufflenet.{name}"


# --- calling it

_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.float64), jnp.dtype(jnp.bfloat16))

_call = Primitive("flax_shufflenet_engine")
_call.multiple_results = True
_references: dict[str, Callable[..., Sequence[Array]]] = {}
_outcomes: dict[str, Callable[..., Sequence[ShapedArray]]] = {}
_in_place: dict[str, int] = {}


def applies(*arrays: Array | np.ndarray) -> bool:
    """Whether the engine computes with these: maps and kernels of one dtype that it knows, and vectors in what is
    computed in with it, not empty, and on one device, or within ``jax.shard_map``, where each device computes by
    itself. What XLA divides among devices it could not divide."""
    maps, vectors = ({array.dtype for array in arrays if (array.ndim == 1) is flat} for flat in (False, True))
    known = len(maps) == 1 and maps <= set(_DTYPES) and vectors <= {accumulator(*maps)}
    sizes = [size for array in arrays for size in array.shape]  # some are symbols in a program for any of them
    known = known and all(isinstance(size, int) and size for size in sizes)
    mesh = jax.sharding.get_abstract_mesh()
    return known and (mesh.empty or mesh.are_all_axes_manual) and info().engine


def operation(
    name: str,
    reference: Callable[..., Sequence[Array]],
    outcomes: Callable[..., Sequence[ShapedArray]],
    *,
    in_place: int | None = None,
) -> Callable[..., Sequence[Array]]:
    """A function of arrays, and of options by keyword, that one of the engine's handlers computes on CPU.

    ``reference`` computes the same in JAX, as a tuple or list of arrays. It is what all other platforms get, several
    devices at once outside ``jax.shard_map``, exported programs (which so run where this package is not), and
    derivatives. ``outcomes`` says of which shapes and dtypes they are: to trace ``reference`` for that would take half
    of the time in which a train step is traced. The first outcome comes in the place of the array of number
    ``in_place``, where that is the last one.
    """
    _references[name], _outcomes[name] = reference, outcomes
    if in_place is not None:
        _in_place[name] = in_place

    def call(*arrays: Array, **options) -> Sequence[Array]:
        with jax.named_scope(name.replace("_", " ")):  # for profiles
            return _call.bind(*arrays, name=name, options=tuple(sorted(options.items())))

    return call


def like(array: ShapedArray) -> ShapedArray:
    """An outcome of the same shape and dtype."""
    return ShapedArray(array.shape, array.dtype)


def vectors(count: int, channels_of: ShapedArray) -> list[ShapedArray]:
    """``count`` outcomes of a number for each channel of a map, in what is computed in with it."""
    return [ShapedArray(channels_of.shape[-1:], accumulator(channels_of.dtype))] * count


def _reference(name: str, options: tuple) -> Callable[..., Sequence[Array]]:
    return partial(_references[name], **dict(options))


@_call.def_abstract_eval
def _outcomes_of(*arrays, name, options):
    outcomes = _outcomes[name](*arrays, **dict(options))
    most = max(arrays, key=lambda array: len(array.mat.varying))
    if not most.mat.varying:
        return outcomes
    # Within ``jax.shard_map`` with its check_vma: what is computed from what differs between devices does so too.
    where = {"sharding": NamedSharding(most.sharding.mesh, PartitionSpec()), "manual_axis_type": most.mat}
    return [ShapedArray(outcome.shape, outcome.dtype, **where) for outcome in outcomes]


@_call.def_impl
def _run(*arrays, name, options):
    with jax.disable_jit(False):  # without jit this would be called again
        return _compiled(name, options)(*arrays)


@cache
def _compiled(name, options):
    return jax.jit(partial(_call.bind, name=name, options=options))


def _lower_reference(context, *arrays, name, options):
    return mlir.lower_fun(_reference(name, options), multiple_results=True)(context, *arrays)


def _lower_to_engine(context, *arrays, name, options):
    module = context.module_context
    if module.lowering_parameters.for_export or not _is_on_one_device(module.axis_context):
        return _lower_reference(context, *arrays, name=name, options=options)
    last = len(arrays) - 1
    aliases = {last: 0} if _in_place.get(name) == last else None
    lower = jax.ffi.ffi_lowering(_target(name), operand_output_aliases=aliases)
    return lower(context, *arrays, **{key: _attribute(value) for key, value in options})


def _is_on_one_device(axis_context) -> bool:
    """Or in a program that each device runs by itself: within ``jax.shard_map``."""
    if hasattr(axis_context, "manual_axes"):
        return axis_context.manual_axes == frozenset(axis_context.mesh.axis_names)
    return getattr(axis_context, "num_devices", 0) == 1


def _attribute(value):
    if isinstance(value, tuple):
        return np.array(value, np.int64)
    kinds = {"b": np.bool_, "i": np.int64, "f": np.float64}
    return kinds[np.asarray(value).dtype.kind](value)


mlir.register_lowering(_call, _lower_reference)
mlir.register_lowering(_call, _lower_to_engine, platform="cpu")


def _differentiate(primals, tangents, *, name, options):
    tangents = [ad.instantiate_zeros(tangent) for tangent in tangents]
    return jax.jvp(_reference(name, options), tuple(primals), tuple(tangents))


def _map(arrays, axes, *, name, options):
    """One call after the other: its work is cut for the threads already."""
    mapped = [axis is not None for axis in axes]
    moved = [array if axis is None else jnp.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True)]

    def one(own):
        own = iter(own)
        each = [next(own) if is_mapped else array for is_mapped, array in zip(mapped, moved, strict=True)]
        return _call.bind(*each, name=name, options=options)

    outcomes = jax.lax.map(one, [array for is_mapped, array in zip(mapped, moved, strict=True) if is_mapped])
    return outcomes, [0] * len(outcomes)


ad.primitive_jvps[_call] = _differentiate
batching.primitive_batchers[_call] = _map
