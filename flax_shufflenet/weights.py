"""Saving and loading a net: one safetensors file with the weights, and the architecture in its metadata."""

import functools
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array
from safetensors import SafetensorError, safe_open

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.other_files import explain_missing, explain_unreadable, how_to_convert
from flax_shufflenet.system.files import write_whole

ARCHITECTURE_KEY = "architecture"


def flat_arrays(model: nnx.Module) -> dict[str, Array | jax.ShapeDtypeStruct]:
    """Every parameter and batch statistic under its path, such as ``stages.0.1.branch.0.conv.kernel``.

    Shapes and dtypes alone where the model has no more than those.
    """
    paths = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {_name(path): variable.get_value() for path, variable in paths}


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


class _NoKeys(nnx.Rngs):
    """For nets without values."""

    def params(self) -> None:
        return None


@functools.lru_cache(maxsize=32)
def _without_values(
    architecture: Architecture, dtype: np.dtype, dtype_here: np.dtype
) -> tuple[nnx.GraphDef, list[tuple[tuple, Any]]]:
    """A net in eval mode as its structure, and its variables with shapes and dtypes alone, by path.

    ``dtype_here`` is what JAX makes of ``dtype`` at the moment: float64 cannot be built everywhere.
    """
    model = ShuffleNetV2(architecture, dtype=dtype, rngs=_NoKeys())
    model.eval()
    graph, state = nnx.split(model)
    abstract = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype), state)
    return graph, list(nnx.to_flat_state(abstract))


def _structure(architecture: Architecture, dtype: DTypeLike) -> tuple[nnx.GraphDef, list[tuple[tuple, Any]]]:
    dtype = jnp.dtype(dtype)
    return _without_values(architecture, dtype, jax.dtypes.canonicalize_dtype(dtype))


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and batch statistic of a net, under the names of ``flat_arrays``."""
    _, variables = _structure(architecture, jnp.float32)
    return {_name(path): variable.get_value().shape for path, variable in variables}


def check_size(architecture: Architecture, arrays: int, numbers: int) -> None:
    """Refuses blocks and widths far beyond what is stored, which a few bytes of a file can claim: merely building such
    a net could take for ever.

    Args:
        architecture: what is claimed.
        arrays: how many are stored.
        numbers: how many they hold in all.

    Raises:
        ValueError: the net would be many times larger than what is stored of it.
    """
    if sum(architecture.stage_blocks) + len(architecture.stage_blocks) > arrays:
        raise ValueError("its architecture has more blocks than the file has arrays; it is damaged or altered")
    widths = (architecture.stem_width, *architecture.stage_widths)
    least = sum(before * after // 4 for before, after in itertools.pairwise(widths))
    least += architecture.last_width * architecture.stage_widths[-1]
    least += architecture.features_width * architecture.num_classes
    if least > 4 * numbers + 10_000_000:
        raise ValueError(
            f"a net of these widths has more than {least:,} numbers, and {numbers:,} are stored; "
            "the file is damaged or altered"
        )


def check_arrays(
    architecture: Architecture, arrays: Mapping[str, np.ndarray], *, dtype: DTypeLike | None = None
) -> None:
    """Every array that the net needs is there with its shape, and no other.

    ``dtype`` is what the net computes in; without it, the arrays' dtypes are not looked at.

    Raises:
        ValueError: a missing or unknown name, or a shape or dtype that the net does not have there; the message
            lists the first few.
    """
    check_size(architecture, len(arrays), sum(array.size for array in arrays.values()))
    _, variables = _structure(architecture, dtype or jnp.float32)
    expected = {_name(path): variable.get_value() for path, variable in variables}
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [f"{name} is not part of this net" for name in arrays if name not in expected]
    for name in expected:
        if name in arrays and arrays[name].shape != expected[name].shape:
            problems.append(f"{name} has shape {list(arrays[name].shape)}, not {list(expected[name].shape)}")
        elif name in arrays and dtype is not None and arrays[name].dtype != expected[name].dtype:
            problems.append(f"{name} is {arrays[name].dtype}, not {expected[name].dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError("; ".join(problems[:3]) + more)


def from_arrays(
    architecture: Architecture, arrays: Mapping[str, np.ndarray], *, dtype: DTypeLike = jnp.float32
) -> ShuffleNetV2:
    """A net in eval mode, with these arrays under the names of ``flat_arrays``.

    Raises:
        ValueError: as ``check_arrays``.
    """
    check_arrays(architecture, arrays, dtype=dtype)
    graph, variables = _structure(architecture, dtype)
    # Copies, which device_put need not make; jnp.array does, by a program that it compiles for each shape.
    copies = {name: jax.device_put(np.array(array)) for name, array in arrays.items()}
    filled = [(path, variable.replace(copies[_name(path)])) for path, variable in variables]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def cast_floats(arrays: Mapping[str, np.ndarray], dtype: DTypeLike) -> dict[str, np.ndarray]:
    """The same arrays with all floats in ``dtype``; counts stay as they are."""
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def save(model: ShuffleNetV2, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a net's weights, statistics and architecture to one safetensors file, whole or not at all.

    ``metadata`` is kept in the file beside the architecture; ``read_metadata`` gives it back.

    Raises:
        ValueError: ``load`` could not read the file. The net is not what ``model.architecture`` describes, such as
            after its classifier was replaced, or its weights are neither all float32 nor all float64.
    """
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    try:
        check_arrays(model.architecture, arrays)
    except ValueError as error:
        raise ValueError(f"{path} is not written, model.architecture describes another net: {error}") from None
    dtypes = {array.dtype.name for array in arrays.values() if jnp.issubdtype(array.dtype, jnp.floating)}
    if dtypes not in ({"float32"}, {"float64"}):
        named = " and ".join(sorted(dtypes))
        raise ValueError(f"{path} is not written, the net's weights are {named}, not all float32 or all float64")
    write_whole(Path(path), to_bytes(model.architecture, arrays, metadata or {}))


def to_bytes(architecture: Architecture, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The content of the file that ``save`` writes: the same net and metadata give the same bytes."""
    data = safetensors.numpy.save(dict(arrays), {**metadata, ARCHITECTURE_KEY: architecture.to_json()})
    # The library writes the metadata in a random order. The header is its length (8 bytes), JSON, and spaces up to
    # a multiple of 8.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def load(path: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> ShuffleNetV2:
    """The net that ``save`` wrote, in eval mode.

    ``dtype`` is what it computes in, and the weights are made to fit; by default float32, or float64 where the
    file's weights are float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one that ``save`` wrote, or holds another dtype; the message names it. Or ``dtype``
            is not of floating-point numbers.
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating-point one, such as float32, not {jnp.dtype(dtype)}")
    architecture, arrays = _read(path)
    if dtype is None:
        stored = {array.dtype for array in arrays.values() if array.dtype.kind == "f"}
        dtype = jnp.dtype(jnp.float64 if stored == {np.dtype(np.float64)} else jnp.float32)
    else:
        kept = jnp.promote_types(dtype, jnp.float32)
        arrays = cast_floats(arrays, kept)
    try:
        return from_arrays(architecture, arrays, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that was saved beside the weights, the architecture's JSON included.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one that ``save`` wrote.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(explain_missing(Path(path)))
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        what = explain_unreadable(Path(path)) or f"not a readable safetensors file ({error})"
        raise ValueError(f"{path}: {what}") from None
    if ARCHITECTURE_KEY not in metadata:
        raise ValueError(
            f"{path}: a safetensors file, but not one that flax_shufflenet.save wrote (no architecture); if it "
            f"is PyTorch's, {how_to_convert(Path(path))}"
        )
    return metadata


def _read(path: str | os.PathLike[str]) -> tuple[Architecture, dict[str, np.ndarray]]:
    text = read_metadata(path)[ARCHITECTURE_KEY]
    try:
        architecture = Architecture.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: its architecture cannot be read: {error}") from None
    try:
        return architecture, safetensors.numpy.load_file(path)
    except (AttributeError, KeyError, TypeError):  # of the package, whose NumPy has no such dtype
        raise ValueError(f"{path}: holds {_dtypes(path)}; a net's weights are all float32 or all float64") from None


def _dtypes(path: str | os.PathLike[str]) -> str:
    """In safetensors' own words."""
    with safe_open(path, framework="numpy") as file:
        return ", ".join(sorted({file.get_slice(name).get_dtype() for name in file.keys()}))  # noqa: SIM118, no mapping
