"""Converting from Python: ``load_torch`` brings a PyTorch net to Flax, ``to_torch`` takes it back."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import torch

from convert import mapping
from convert.across import Rewritten, family_of, rewrite
from convert.contents.other_content import text_of
from convert.contents.select import Net, find_net
from convert.contents.tensors import has_plain_bytes
from convert.errors import ConvertError, printable
from convert.evidence.choices import Activation, Shuffle, Stem
from convert.evidence.graph import note_on_graph, weigh_graph
from convert.evidence.images import settle_input
from convert.files.inert_archives import read_zip
from convert.files.read import Source, read
from convert.layouts import LAYOUTS
from convert.origin import describe_origin, restore_origin
from convert.proof.report import Report
from convert.proof.verify import Proof, verify
from flax_shufflenet import Architecture, ShuffleNetV2
from flax_shufflenet.errors import one_line
from flax_shufflenet.weights import ARCHITECTURE_KEY, cast_floats, flat_arrays, from_arrays


class Conversion(NamedTuple):
    """A net on its way from PyTorch: its arrays, what to keep beside them, and what was measured."""

    net: Net
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]
    report: Report


def load_torch(
    source: str | os.PathLike[str] | Mapping[str, Any] | torch.nn.Module,
    *,
    stem: Stem | None = None,
    activation: Activation | None = None,
    shuffle: Shuffle | None = None,
    epsilon: float | None = None,
    use_ema: bool = False,
    backbone: bool = False,
    key: str | None = None,
) -> tuple[ShuffleNetV2, Report]:
    """A PyTorch checkpoint as a Flax net in eval mode, proven by running both.

    Args:
        source: a checkpoint file, a state_dict (or the dictionary around one), or a module, whose layers are heeded.
        stem: "cifar", "imagenet", "strided" or "pooled", where the tensors cannot tell.
        activation: "relu" or "leaky_relu", where the tensors cannot tell (NanoDet's backbones).
        shuffle: "after" or "reverse", where the tensors cannot tell (pytorchcv's shufflenetv2b).
        epsilon: what batch normalisations add to the variance; by default what is usual in the layout.
        use_ema: take the averaged weights beside the model.
        backbone: leave out the head and everything else that is not the backbone.
        key: take the net at this place, where there are several.

    Raises:
        ConvertError: the file cannot be read, holds no ShuffleNetV2, or the proof fails.
    """
    conversion = convert_source(
        as_source(source),
        stem=stem,
        activation=activation,
        shuffle=shuffle,
        epsilon=epsilon,
        use_ema=use_ema,
        backbone=backbone,
        key=key,
        to_load=True,
    )
    if conversion.report.proof.failure:
        raise ConvertError(f"{conversion.report.source}: the proof failed: {conversion.report.proof.failure}")
    model = from_arrays(conversion.net.architecture, conversion.arrays, dtype=_dtype(conversion.arrays))
    return model, conversion.report


def _dtype(arrays: Mapping[str, np.ndarray]) -> np.dtype:
    return np.result_type(*(array.dtype for array in arrays.values() if array.dtype.kind == "f"))


def as_source(source: str | os.PathLike[str] | Mapping[str, Any] | torch.nn.Module) -> Source:
    """A file, read; or a dictionary or module in memory, whose hash is that of its tensors' names and bytes.

    Raises:
        ConvertError: the file cannot be read or is a Flax net's, the module cannot be pickled, or it is none of these.
    """
    if isinstance(source, torch.nn.Module):
        return _in_memory("module", _pickled(source))
    if isinstance(source, Mapping):
        return _in_memory("state_dict", source)
    if not isinstance(source, str | os.PathLike):
        raise ConvertError(f"load_torch takes a file, a state_dict or a torch.nn.Module, not a {type(source).__name__}")
    opened = read(source)
    if ARCHITECTURE_KEY in opened.metadata:
        raise ConvertError(f"{opened.path}: a Flax net; flax_shufflenet.load opens it")
    return opened


def _pickled(module: torch.nn.Module) -> Any:
    """A module as a file that torch.save writes has it: nothing of its own classes is asked for what it is."""
    buffer = io.BytesIO()
    try:
        torch.save(module, buffer)
        return read_zip(buffer.getvalue())[1]
    except Exception as error:  # whatever its classes make of being pickled
        raise ConvertError(f"module: cannot be read ({one_line(error)}); give its state_dict() instead") from None


def _in_memory(name: str, content: Any) -> Source:
    digest = hashlib.sha256()
    for key, tensor in _tensors_in(content):
        digest.update(key.encode(errors="surrogatepass") + _bits(tensor.detach()).numpy().tobytes())
    return Source(Path(name), digest.hexdigest(), "in memory", content, {})


def _tensors_in(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of all dictionaries and lists in each other, each once.

    Raises:
        ConvertError: a lazy module's parameter, of which not even the shape is known.
    """
    seen: set[int] = set()
    pending = [content]
    while pending:
        container = pending.pop()
        if id(container) in seen or not isinstance(container, Mapping | list | tuple):
            continue
        seen.add(id(container))
        for key, value in container.items() if isinstance(container, Mapping) else enumerate(container):
            if torch.nn.parameter.is_lazy(value):
                raise ConvertError(f"{text_of(key)} has no values yet; run its module once on images")
            if torch.is_tensor(value) and has_plain_bytes(value):
                yield text_of(key), value
            else:
                pending.append(value)


def convert_source(
    source: Source,
    *,
    stem: Stem | None = None,
    activation: Activation | None = None,
    shuffle: Shuffle | None = None,
    epsilon: float | None = None,
    use_ema: bool = False,
    backbone: bool = False,
    key: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    target: str | None = None,
    to_load: bool = False,
) -> Conversion:
    """Finds the net in a source, maps it, and runs both nets; whether they agree is in the report.

    Raises:
        ConvertError: no net, one that cannot be mapped, one that the layout ``target`` cannot hold, or, where it is
            ``to_load``, one in a dtype that JAX is not set to.
    """
    for option, value, choices in (
        ("stem", stem, Stem),
        ("activation", activation, Activation),
        ("shuffle", shuffle, Shuffle),
    ):
        if value not in (None, *get_args(choices)):
            raise ConvertError(f"{option} must be one of {', '.join(get_args(choices))}, not {value}")
    try:
        net = find_net(
            source.content,
            stem=stem,
            activation=activation,
            shuffle=shuffle,
            epsilon=epsilon,
            use_ema=use_ema,
            backbone=backbone,
            key=key,
        )
        arrays = mapping.to_arrays(net.layout, net.architecture, net.tensors)
        if to_load and (dtype := _dtype(arrays)) != jax.dtypes.canonicalize_dtype(dtype):
            raise ConvertError(
                f"its weights are {dtype}; call jax.config.update('jax_enable_x64', True) first, or make them float32 "
                "with net.float()"
            )
        input_notes, expected_input = settle_input(net.layout, net.architecture, net.tensors)
        graph_notes = note_on_graph(weigh_graph(net.layout, net.architecture, net.tensors))
        metadata = {**describe_origin(net), **expected_input}
        _check_round_trip(net, arrays, metadata)
        if target is not None:
            # A refusal need not wait for the proof.
            rewrite(net.architecture, arrays, target, came_in=net.layout.name)
        proof = verify(net.layout, net.architecture, net.tensors, net.architecture, arrays, images)
    except ConvertError as error:
        raise ConvertError(f"{source.path}: {error}") from None
    report = Report(
        source=printable(source.path.name, 300),
        sha256=source.sha256,
        kind=source.kind,
        layout=f"{net.layout.name} ({net.layout.repository})",
        architecture=net.architecture,
        tensors=len(net.tensors),
        parameters=count_parameters(arrays),
        notes=(*net.notes, *graph_notes, *input_notes, *_dtype_notes(net)),
        proof=proof,
    )
    return Conversion(net, arrays, {**metadata, **report.metadata(), "layout": net.layout.name}, report)


def count_parameters(arrays: Mapping[str, np.ndarray]) -> int:
    """Trainable numbers among a net's arrays."""
    statistics = (".mean", ".var", ".num_batches_tracked")
    return sum(array.size for name, array in arrays.items() if not name.endswith(statistics))


def _dtype_notes(net: Net) -> list[str]:
    dtypes = {tensor.dtype for tensor in net.tensors.values() if tensor.is_floating_point()} - {torch.float32}
    fate = {torch.float64: "kept; flax_shufflenet.load needs jax_enable_x64 for it"}
    return [
        f"dtype: {str(dtype).removeprefix('torch.')} {fate.get(dtype, 'made float32, which is exact')}"
        for dtype in sorted(dtypes, key=str)
    ]


def _check_round_trip(net: Net, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Mapped back, every tensor of the file is the same bit for bit.

    Raises:
        ConvertError: one is not; a fault of the converter, never of the file.
    """
    unchanged = Rewritten(net.layout, net.architecture, dict(arrays), ())
    back = restore_origin(unchanged, mapping.to_tensors(net.layout, net.architecture, arrays), arrays, metadata)
    for name, tensor in back.tensors.items():
        original = net.tensors[name]
        same = torch.equal(_bits(tensor), _bits(original)) if tensor.is_floating_point() else tensor == original
        if not same:
            raise ConvertError(f"{name} does not survive the way to Flax and back; please report this")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def choose_layout(architecture: Architecture, metadata: Mapping[str, str]) -> str:
    """The layout to write a net in when none is named: the one it came in, or the one that computes the same.

    Raises:
        ConvertError: no layout's nets compute this, or the metadata is damaged.
    """
    layout = metadata.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise ConvertError(
            f"the layout that it came in is said to be {printable(layout, 40)}, which is none; the file is damaged or "
            "altered, name the layout with --to"
        )
    layout = layout or family_of(architecture)
    if layout is None:
        raise ConvertError("no PyTorch layout computes what this net does; name the nearest with --to to hear why")
    return layout


def to_torch(model: ShuffleNetV2, layout: str | None = None) -> dict[str, torch.Tensor]:
    """A net's PyTorch state_dict, proven by running both.

    ``layout`` is one of ``convert.LAYOUTS``; by default the one that computes the same as the net.

    Raises:
        ConvertError: the layout cannot hold the net, it is no such net, or the proof fails.
    """
    if not isinstance(model, ShuffleNetV2):
        raise ConvertError(
            f"to_torch takes a net, as flax_shufflenet.load gives it, not a {type(model).__name__}; of a fused net, "
            "give the one that was fused"
        )
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    tensors, _, proof = write_layout(model.architecture, arrays, layout or choose_layout(model.architecture, {}))
    if proof.failure:
        raise ConvertError(f"the proof failed: {proof.failure}")
    return tensors


def write_layout(
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    target: str,
    images: Sequence[np.ndarray] | None = None,
    came_in: str | None = None,
) -> tuple[dict[str, torch.Tensor], Rewritten, Proof]:
    """A net's tensors in a layout and in that layout's own order, and the comparison of the two nets; ``came_in`` is as
    in ``rewrite``.

    Raises:
        ConvertError: no such layout, or it cannot hold the net.
    """
    if not isinstance(target, str) or target not in LAYOUTS:
        raise ConvertError(f"the layout must be one of {', '.join(LAYOUTS)}, not {target}")
    # Changes are made in float64, so that the proof sees an exact change; the file has the net's own dtype.
    wide = cast_floats(arrays, np.float64)
    rewritten = rewrite(architecture, wide, target, came_in=came_in)
    layout, changed_architecture = rewritten.layout, rewritten.architecture
    wide_tensors = mapping.to_tensors(layout, changed_architecture, rewritten.arrays)
    proof = verify(layout, changed_architecture, wide_tensors, architecture, arrays, images)
    dtype = torch.float64 if arrays["stem.conv.kernel"].dtype == np.float64 else torch.float32
    tensors = {
        name: wide_tensors[name].to(dtype) if wide_tensors[name].is_floating_point() else wide_tensors[name]
        for name in layout.reference_to_fill(changed_architecture).state_dict()  # in its order
    }
    return tensors, rewritten, proof
