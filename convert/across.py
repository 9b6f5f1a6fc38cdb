"""Writing a net in another layout than the one it came in: what that layout can hold, and what has to change."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convert.errors import ConvertError
from convert.layouts import LAYOUTS, Layout
from flax_shufflenet import Architecture
from flax_shufflenet.architecture import family_fields

# Why a net that has the first value cannot be written in a layout that has the other.
_OBSTACLES: dict[str, dict[Any, str]] = {
    "down_relu": {True: "its down blocks have ReLUs", False: "its down blocks have no ReLU"},
    "stem_relu": {True: "its stem has a ReLU", False: "its stem has no ReLU"},
    "shuffle": {
        "after": "it shuffles after each block",
        "before": "it shuffles before each basic block",
        "reverse": "it shuffles the other way round after each block",
    },
    "down_left": {"half": "its left branches are half a stage wide", "input": "its left branches keep their width"},
    "down_middle": {
        "half": "its right branches narrow at their first convolution",
        "input": "its right branches narrow at their last convolution",
    },
}
_KERNELS = {
    "stem_kernel": "stem's",
    "down_kernel": "down blocks' depthwise",
    "basic_kernel": "basic blocks' depthwise",
}
_SAME_NAMES = {"chenyaofo", "torchvision"}
_Stem = tuple[int, bool, bool]


class Rewritten(NamedTuple):
    """A net as a layout can hold it: the same function of its input."""

    layout: Layout
    architecture: Architecture
    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...]


def family_of(architecture: Architecture) -> str | None:
    """The layout whose own nets compute what this architecture does; None if no layout's do."""
    for name in LAYOUTS:
        layout = LAYOUTS[name]
        fields = {field: value for field, value in family_fields(name).items() if field not in layout.options}
        ends_alike = layout.last is not None if architecture.last_width else layout.may_end_early
        if ends_alike and all(getattr(architecture, field) == value for field, value in fields.items()):
            return name
    return None


def rewrite(
    architecture: Architecture, arrays: Mapping[str, np.ndarray], target: str, *, came_in: str | None = None
) -> Rewritten:
    """The same net with the arrays and options that ``target``'s layout has.

    ``came_in`` is the layout of the checkpoint that the net was converted from, None where there was none; in that
    layout it is written with the head that the checkpoint had.

    Raises:
        ConvertError: the layout's nets compute something else; says what.
    """
    notes: list[str] = []
    requested, target = target, _with_stem(architecture, target, notes)
    fields = family_fields(target)
    obstacles = [
        f"{described[getattr(architecture, field)]}, and in that layout {_of_target(described[fields[field]])}"
        for field, described in _OBSTACLES.items()
        if getattr(architecture, field) != fields[field] and field not in LAYOUTS[target].options
    ]
    if architecture.negative_slope != fields["negative_slope"] and "negative_slope" not in LAYOUTS[target].options:
        obstacles.append(
            f"it has {_activation(architecture.negative_slope)}, that layout's have "
            f"{_activation(fields['negative_slope'])}"
        )
    for field, what in _KERNELS.items():
        own, others = (f"{side}x{side}" for side in (getattr(architecture, field), fields[field]))
        if own != others and field not in LAYOUTS[target].options:
            obstacles.append(f"its {what} kernels are {own}, in that layout they are {others}")
    if not architecture.last_width and not LAYOUTS[target].may_end_early:
        obstacles.append("it ends after its last stage, and in that layout a last convolution follows")
    if architecture.last_width and LAYOUTS[target].last is None:
        obstacles.append("a last convolution follows its last stage, and in that layout none does")
    if architecture.shuffle_groups != 2:
        obstacles.append(f"it shuffles {architecture.shuffle_groups} groups, and every layout shuffles 2")
    if len(architecture.stage_widths) != 3:
        obstacles.append(f"it has {len(architecture.stage_widths)} stages, and every layout has 3")
    if obstacles:
        raise ConvertError(f"the {requested} layout cannot hold this net: {'; '.join(obstacles)}")

    if architecture.bn_epsilon != fields["bn_epsilon"]:
        notes.append(
            f"epsilon: the net's batch normalisations add {architecture.bn_epsilon:g} to the variance; set eps of that "
            f"module's, which have {fields['bn_epsilon']:g}, or its results are wrong"
        )
    changed = dict(arrays)
    if architecture.conv_bias and not fields["conv_bias"]:
        _fold_conv_biases(changed)
        notes.append("biases of convolutions folded into the running means")
    if fields["conv_bias"] and not architecture.conv_bias:
        _add_conv_biases(changed)
        notes.append("convolutions given a bias of zero")
    head_bias = architecture.head_bias
    if architecture.num_classes and architecture.head_bias != fields["head_bias"] and requested != came_in:
        head_bias = fields["head_bias"]
        if head_bias:
            changed["classifier.bias"] = np.zeros(architecture.num_classes, changed["classifier.kernel"].dtype)
            notes.append("the head given a bias of zero")
        elif changed.pop("classifier.bias").any():
            raise ConvertError(
                f"the {requested} layout cannot hold this net: its head has a bias, and that layout's has none"
            )
    if architecture.pool_size != fields["pool_size"]:
        own, other = (f"{n}x{n} values" if n else "all values" for n in (architecture.pool_size, fields["pool_size"]))
        notes.append(
            f"pooling: the net averages {own} of the last map, this layout {other}; "
            "the two agree only on images that leave one such window"
        )
    rewritten = dataclasses.replace(
        architecture, conv_bias=fields["conv_bias"], head_bias=head_bias, pool_size=fields["pool_size"]
    )
    return Rewritten(LAYOUTS[target], rewritten, changed, tuple(notes))


def _activation(negative_slope: float) -> str:
    return f"LeakyReLUs of slope {negative_slope:g}" if negative_slope else "ReLUs"


def _of_target(described: str) -> str:
    return described.replace("its ", "the ", 1).replace("it shuffles", "one shuffles", 1)


def _with_stem(architecture: Architecture, target: str, notes: list[str]) -> str:
    """torchvision's names also hold nets with a small-image stem, if their user builds the net that way."""
    stem = (architecture.stem_stride, architecture.stem_pool, architecture.stem_pool_ceil)
    if target in _SAME_NAMES:
        for name in _SAME_NAMES:
            if stem == _stem_of(name):
                if name != target and target == "torchvision":
                    notes.append(
                        "stem: stride 1 without a max-pool, as the net has it; on torchvision's module set "
                        "net.conv1[0].stride = (1, 1) and net.maxpool = nn.Identity(), or its results are wrong"
                    )
                elif name != target:
                    notes.append(f"stem: stride 2 and a max-pool, as the net has it, which {target}'s module has not")
                return name
        target = "torchvision"
    if stem != _stem_of(target) and {"stem_stride", "stem_pool"} <= {*LAYOUTS[target].options} and not stem[2]:
        changes = ["net.conv1[0].stride = (1, 1)"] * (stem[0] == 1) + ["net.maxpool = nn.Identity()"] * (not stem[1])
        notes.append(
            f"stem: {_described(stem)}, as the net has it; on that layout's module set {' and '.join(changes)}, or its "
            "results are wrong"
        )
    elif stem != _stem_of(target):
        raise ConvertError(
            f"the {target} layout cannot hold this net: its stem has {_described(stem)}, that layout's "
            f"{_described(_stem_of(target))}"
        )
    return target


def _stem_of(family: str) -> _Stem:
    fields = family_fields(family)
    return fields["stem_stride"], fields["stem_pool"], fields["stem_pool_ceil"]


def _described(stem: _Stem) -> str:
    stride, pool, ceil = stem
    return f"stride {stride}" + (" and a max-pool" + " without padding" * ceil if pool else " without a max-pool")


def _fold_conv_biases(arrays: dict[str, np.ndarray]) -> None:
    """BN(conv(x) + b) with running mean m is BN(conv(x)) with running mean m - b."""
    for name in [name for name in arrays if name.endswith(".conv.bias")]:
        mean = name.replace(".conv.bias", ".bn.mean")
        arrays[mean] = arrays[mean] - arrays.pop(name)


def _add_conv_biases(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if name.endswith(".bn.mean")]:
        arrays[name.replace(".bn.mean", ".conv.bias")] = np.zeros_like(arrays[name])
