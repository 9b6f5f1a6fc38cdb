"""What a Flax file keeps of the checkpoint that it came from, beyond the net: half precision, and absent counts."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from convert.across import Rewritten
from convert.contents.select import Net
from convert.contents.tensors import is_count
from convert.errors import ConvertError
from convert.mapping import torch_names

_HALF = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16)}


class Restored(NamedTuple):
    """A state_dict in the dtypes that the net once came in; the note says where that cannot be."""

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def describe_origin(net: Net) -> dict[str, str]:
    """Metadata of what the Flax arrays no longer tell: the dtype of each that was in half precision, by its name in
    Flax, since the net may be written in another layout; and whether there were counts of batches."""
    metadata = {}
    names = torch_names(net.layout, net.architecture)
    half = {flax_name: str(net.tensors[name].dtype).removeprefix("torch.") for flax_name, name in names.items()}
    half = {flax_name: dtype for flax_name, dtype in half.items() if dtype in _HALF}
    if half:
        metadata["half_precision"] = json.dumps(half)
    counts = [flax_name for flax_name, name in names.items() if name in net.counts_absent]
    if counts:
        every = len(counts) == sum(is_count(name) for name in names)
        metadata["num_batches_tracked"] = "absent" if every else json.dumps({"absent": counts})
    return metadata


def restore_origin(
    rewritten: Rewritten,
    tensors: Mapping[str, torch.Tensor],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> Restored:
    """A net's tensors as its first file had them: half precision again, counts absent again.

    Args:
        rewritten: the net as the layout that it is written in holds it.
        tensors: its tensors, by their names in that layout.
        arrays: the net as it was before it was rewritten, by Flax names.
        metadata: of ``describe_origin``.

    Raises:
        ConvertError: the metadata is not readable, or the net was changed since.
    """
    half = _read_half_precision(metadata, arrays)
    names = torch_names(rewritten.layout, rewritten.architecture)
    floats = {name for name, array in arrays.items() if array.dtype.kind == "f"}
    if half.keys() == floats and len(set(half.values())) == 1:  # what the layout adds is made like all the rest
        (dtype,) = set(half.values())
        half |= {name: dtype for name in names if name not in arrays}

    restored, notes = dict(tensors), []
    for flax_name in _read_absent_counts(metadata, arrays):
        restored.pop(names[flax_name])
    for flax_name, dtype in half.items():
        if (name := names.get(flax_name)) is None:
            continue
        restored[name] = tensors[name].to(dtype)
        if torch.equal(restored[name].to(tensors[name].dtype), tensors[name]):
            continue
        precision = str(dtype).removeprefix("torch.")
        if flax_name in arrays and np.array_equal(arrays[flax_name], rewritten.arrays[flax_name]):
            raise ConvertError(
                f"{name} does not fit into {precision}, which the file says it came in; "
                "the file was altered, or the net trained on: save it anew with flax_shufflenet.save, without that note"
            )
        # A state_dict of two precisions would surprise whoever loads it.
        notes = [f"dtype: float32, since {name}, which this layout changes, does not fit into {precision}"]
        return Restored({name: tensors[name] for name in restored}, tuple(notes))
    return Restored(restored, ())


def _read_absent_counts(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """The Flax names of the counts that the net's first file had not."""
    counts = [name for name in arrays if is_count(name)]
    note = metadata.get("num_batches_tracked")
    if note is None or note == "absent":
        return counts if note else []
    try:
        absent = json.loads(note)["absent"]
        if {*absent} <= {*counts}:
            return absent
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ConvertError("its note on num_batches_tracked cannot be read; it is damaged or altered")


def _read_half_precision(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> dict[str, torch.dtype]:
    try:
        half = {name: _HALF[dtype] for name, dtype in json.loads(metadata.get("half_precision", "{}")).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        half = {"": torch.float16}
    if any(name not in arrays or arrays[name].dtype.kind != "f" for name in half):
        raise ConvertError("its note on half precision cannot be read; it is damaged or altered")
    return half
