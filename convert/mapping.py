"""Between a state_dict in one layout's names and the Flax net's arrays: by name, with nothing left over."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import jax
import numpy as np
import torch

from convert.errors import ConvertError, listing
from convert.layouts import Layout
from flax_shufflenet import Architecture
from flax_shufflenet.architecture import family_fields
from flax_shufflenet.weights import check_size, shapes

Tensors = Mapping[str, torch.Tensor]

_IF_MISSING = "if the net has it, save its whole state_dict() again; if not, it is another net and cannot be converted"
_WITHOUT_HEAD = "take the net without its head with --backbone"

_BATCH_NORM = {
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}


def torch_names(layout: Layout, architecture: Architecture) -> dict[str, str]:
    """For every array of the Flax net, in the net's order: its name in PyTorch."""
    names = {}
    for part in layout.parts_of(architecture):
        names[f"{part.flax}.conv.kernel"] = f"{part.conv}.weight"
        if architecture.conv_bias:
            names[f"{part.flax}.conv.bias"] = f"{part.conv}.bias"
        for flax_name, torch_name in _BATCH_NORM.items():
            names[f"{part.flax}.bn.{flax_name}"] = f"{part.bn}.{torch_name}"
    if architecture.num_classes:
        names["classifier.kernel"] = f"{layout.head}.weight"
        if architecture.head_bias:
            names["classifier.bias"] = f"{layout.head}.bias"
    return names


def infer_architecture(layout: Layout, tensors: Tensors) -> Architecture:
    """The net that these tensors, in this layout's names, belong to; its stem and pooling are the family's.

    Raises:
        ConvertError: a tensor that decides is missing or has another shape, or no such net can be built.
    """

    def shape(conv: str) -> Sequence[int]:
        name = f"{conv}.weight"
        if name not in tensors:
            raise ConvertError(
                f"the tensors do not make a {layout.called} ShuffleNetV2: {name} is missing; {_IF_MISSING}"
            )
        if tensors[name].ndim != 4 or 0 in tensors[name].shape:
            raise ConvertError(f"{name} has shape {list(tensors[name].shape)}; a convolution's has 4 numbers above 0")
        return tensors[name].shape

    stage_blocks = _count_blocks(layout, tensors)
    with_last = layout.last is not None and (
        not layout.may_end_early or f"{layout.root}{layout.last[0]}.weight" in tensors
    )
    parts = {part.flax: part.conv for part in layout.parts(stage_blocks, with_last=with_last)}
    stage_widths = []
    splits = []
    for stage, blocks in enumerate(stage_blocks):
        width = shape(parts[f"stages.{stage}.0.left.1"])[0] + shape(parts[f"stages.{stage}.0.right.2"])[0]
        stage_widths.append(width)
        if blocks:
            splits.append((width, width - shape(parts[f"stages.{stage}.1.branch.0"])[0]))

    fields = family_fields(layout.name)
    blocks = next((f"stages.{stage}.1.branch.1" for stage, count in enumerate(stage_blocks) if count), None)
    for field, part in {"stem_kernel": "stem", "down_kernel": "stages.0.0.left.0", "basic_kernel": blocks}.items():
        if field in layout.options and part is not None:
            fields[field] = shape(parts[part])[2]
    num_classes = 0
    if f"{layout.head}.weight" in tensors:
        head = tensors[f"{layout.head}.weight"]
        if head.ndim != 2:
            as_matrix = (
                "save weight.flatten(1) in its place, which computes the same, or " if _is_pointwise(head) else ""
            )
            raise ConvertError(
                f"{layout.head}.weight has shape {list(head.shape)}, a linear layer's has 2 numbers; "
                f"{as_matrix}{_WITHOUT_HEAD}"
            )
        num_classes = head.shape[0]
        fields["head_bias"] = f"{layout.head}.bias" in tensors
    last_width = shape(parts["last"])[0] if with_last else 0
    try:
        return Architecture(
            stage_widths=tuple(stage_widths),
            stage_blocks=stage_blocks,
            stem_width=shape(parts["stem"])[0],
            last_width=last_width,
            num_classes=num_classes,
            split_ratio=_split_ratio(splits),
            # The authors' net drops features only at size 2.0, the one with 2048 of them.
            dropout=0.2 if layout.name == "megvii" and last_width == 2048 else 0.0,
            **fields,
        )
    except ValueError as error:
        raise ConvertError(f"no ShuffleNetV2 has these shapes: {error}") from None


def _is_pointwise(kernel: torch.Tensor) -> bool:
    return kernel.ndim == 4 and kernel.shape[2:] == (1, 1)


def _count_blocks(layout: Layout, tensors: Tensors) -> tuple[int, int, int]:
    """How many basic blocks follow each of the three down blocks, by the names that are there."""
    branch_names = {conv for conv, _ in layout.branch}
    only_in_down = next(conv for conv, _ in (*layout.left, *layout.right) if conv not in branch_names)

    def has(name: str, conv: str) -> bool:
        return f"{name}.{conv}.weight" in tensors

    counts, index = [], 0
    for stage in range(3):
        index += 1  # the down block
        blocks = 0
        while True:
            name = layout.block_name(stage, blocks + 1, index)
            if has(name, only_in_down) or not any(has(name, conv) for conv in branch_names):
                break
            blocks, index = blocks + 1, index + 1
        counts.append(blocks)
    return tuple(counts)


def _split_ratio(splits: list[tuple[int, int]]) -> float:
    """One ratio with int(width * ratio) == passed for every (width, passed); the simplest there is.

    Raises:
        ConvertError: no single ratio gives these widths.
    """

    def fits(ratio: float) -> bool:
        return all(int(width * ratio) == passed for width, passed in splits)

    low = max((Fraction(passed, width) for width, passed in splits), default=Fraction(1, 2))
    high = min((Fraction(passed + 1, width) for width, passed in splits), default=Fraction(1))
    middle = (low + high) / 2
    candidates = [0.5, *(float(middle.limit_denominator(bound)) for bound in (10, 100, 1000)), float(middle)]
    for ratio in candidates:
        if fits(ratio):
            return ratio
    described = ", ".join(f"{passed} of {width}" for width, passed in splits)
    raise ConvertError(f"basic blocks pass {described} channels on, which is no single split ratio")


def expected_shapes(layout: Layout, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of this net, under its PyTorch name."""
    ours = shapes(architecture)
    return {
        torch_name: tuple(ours[flax_name][axis] for axis in _axes_to_torch(len(ours[flax_name])))
        for flax_name, torch_name in torch_names(layout, architecture).items()
    }


def _axes_to_torch(ndim: int) -> tuple[int, ...]:
    """HWIO -> OIHW for kernels, [in, out] -> [out, in] for matrices; vectors and numbers stay."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(ndim, tuple(range(ndim)))


def _axes_to_flax(ndim: int) -> tuple[int, ...]:
    return {4: (2, 3, 1, 0), 2: (1, 0)}.get(ndim, tuple(range(ndim)))


def check_names_and_shapes(layout: Layout, architecture: Architecture, tensors: Tensors) -> None:
    """Every tensor of the net is there with its shape, and no other.

    Raises:
        ConvertError: the first few that are missing, left over or of another shape, with both shapes.
    """
    try:
        check_size(architecture, len(tensors), sum(tensor.numel() for tensor in tensors.values()))
    except ValueError as error:
        raise ConvertError(str(error)) from None
    _check_image_channels(f"{layout.root}{layout.stem[0]}.weight", tensors)
    expected = expected_shapes(layout, architecture)
    missing = [f"{name} is missing" for name in expected if name not in tensors]
    unknown = [f"{name} belongs to no part of the net" for name in tensors if name not in expected]
    misshapen = {
        name: f"{name} has shape {list(tensor.shape)}, not {list(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    }
    if problems := [*missing, *unknown, *misshapen.values()]:
        remedy = "it is another net with these names, and cannot be converted"
        if missing:
            remedy = _IF_MISSING
        elif not unknown and all(name.startswith(f"{layout.head}.") for name in misshapen):
            remedy = _WITHOUT_HEAD
        raise ConvertError(f"the tensors do not make a {layout.called} ShuffleNetV2: {listing(problems)}; {remedy}")


def _check_image_channels(name: str, tensors: Tensors) -> None:
    """Raises:
    ConvertError: the stem's convolution, of this name, takes images of other than three channels.
    """
    shape = list(tensors[name].shape) if name in tensors else []
    if len(shape) != 4 or shape[1] == 3:
        return
    channels = f"{shape[1]} channel{'s' * (shape[1] != 1)}"
    said = f"{name} has shape {shape}: the net takes images of {channels}, and all nets here take 3"
    if shape[1] == 1:
        raise ConvertError(
            f"{said}; save weight.repeat(1, 3, 1, 1) / 3 in its place, and it computes the same from grey images that "
            "are given as three equal channels"
        )
    raise ConvertError(f"{said}; it cannot be converted")


def to_arrays(layout: Layout, architecture: Architecture, tensors: Tensors) -> dict[str, np.ndarray]:
    """The Flax net's arrays. Floats keep their dtype, half precision becomes float32; counts become int32.

    Raises:
        ConvertError: a batch count that int32 does not hold.
    """
    arrays = {}
    for flax_name, torch_name in torch_names(layout, architecture).items():
        tensor = tensors[torch_name]
        if not tensor.is_floating_point():
            if not 0 <= int(tensor) < 2**31:
                raise ConvertError(f"{torch_name} is {int(tensor)}, a count that int32 does not hold")
            tensor = tensor.to(torch.int32)
        elif tensor.dtype != torch.float64:
            tensor = tensor.float()
        array = tensor.detach().numpy()
        arrays[flax_name] = np.array(array.transpose(_axes_to_flax(array.ndim)), order="C")
    return arrays


def to_tensors(
    layout: Layout, architecture: Architecture, arrays: Mapping[str, np.ndarray | jax.Array]
) -> dict[str, torch.Tensor]:
    """The PyTorch state_dict of a net, in the layout's names and PyTorch's order; counts become int64."""
    tensors = {}
    for flax_name, torch_name in torch_names(layout, architecture).items():
        array = np.asarray(arrays[flax_name])
        tensor = torch.from_numpy(np.array(array.transpose(_axes_to_torch(array.ndim)), order="C"))
        tensors[torch_name] = tensor if tensor.is_floating_point() else tensor.to(torch.int64)
    return tensors
