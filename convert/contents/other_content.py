"""What a file holds that has no net of any layout in it, by the names of what is in it, and what helps."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from convert.errors import listing, printable
from convert.files.inert_pickle import StandIn
from convert.files.other_archives import AS_TENSORS
from convert.layouts import LAYOUTS

# Beginnings of names, or of what follows a dot in them, that tell other nets; the first that is there counts.
_OTHER_NETS = {
    "stage2.0.g_conv_1x1_compress": "ShuffleNet version 1",
    "layer1.0.downsample": "a ResNet",
    "layer1.0.shortcut": "a ResNet",
    "layer2.0.downsample": "a ResNet",
    "layer2.0.shortcut": "a ResNet",
    "layer1.0.bn3": "a ResNet or ShuffleNet version 1",
    "layer1.0.conv1": "a ResNet",
    "features.0.branch_main_1": "ShuffleNetV2+",
    "features.denseblock1": "a DenseNet",
    "features.1.0.attn": "a Swin transformer",
    "features.1.0.layer_scale": "a ConvNeXt",
    "features.1.0.block.": "an EfficientNet",
    "features.1.block.": "MobileNetV3",
    "features.1.conv.": "MobileNetV2",
    "features.3.squeeze": "SqueezeNet",
    "features.init_block": "another net of the package pytorchcv",
    "_blocks.0._depthwise_conv": "an EfficientNet",
    "blocks.0.0.conv_dw": "a MobileNet or EfficientNet of the package timm",
    "layers.0.blocks.0.attn": "a Swin transformer",
    "layers.0.conv1": "a MobileNet of kuangliu/pytorch-cifar",
    "Conv2d_1a_3x3": "an Inception net",
    "inception3a": "an Inception net",
    "trunk_output.block1": "a RegNet",
    "encoder.layers.encoder_layer_0": "a vision transformer",
    "encoder.layer.0.attention": "a transformer",
    "blocks.0.attn": "a vision transformer",
    "model.0.conv": "a YOLO detector",
    "features.0.weight": "a VGG net or AlexNet",
}

# Parts of the names that implementations of ShuffleNetV2 give to its blocks' branches.
_BRANCHES = {"branch1", "branch2", "branch_main", "branch_proj", "branch_1", "branch_2"}

"""What helps where a file holds NumPy arrays."""


def explain(content: Any, items: Sequence[tuple[str, Any]]) -> str:
    """The refusal of a file's content; ``items`` are the names and values of all mappings in it."""
    names = [name for name, _ in items]
    tensors = {name: value for name, value in items if torch.is_tensor(value)}
    if any("_packed_params" in name for name in names):
        return "an int8-quantised net; save the float net's state_dict() before quantising"
    if other := _other_net(names):
        return f"no ShuffleNetV2 in it; it looks like {other}; name another file"
    if not tensors and (arrays := [name for name, value in items if _is_array(value)]):
        return f"holds NumPy arrays ({listing(arrays)}); {AS_TENSORS}"
    if lost := next(filter(_has_lost_its_name, tensors), None):
        return _explain_lost_names(lost, tensors)
    if branches := [name for name in tensors if not _BRANCHES.isdisjoint(name.split("."))]:
        return f"its branches have a ShuffleNetV2's names ({listing(branches)}), but {_why_none_fits(branches)}"
    return f"no ShuffleNetV2 in it; it looks like {_describe(content, names, list(tensors))}"


def _why_none_fits(branches: Sequence[str]) -> str:
    if any(name.endswith(".running_mean") for name in branches):
        return "make no layout that is known here; docs/adding_a_layout.md says how to add one"
    return "have no batch normalisations; if these are folded into the convolutions, convert the net as it was before"


def _other_net(names: Sequence[str]) -> str | None:
    return next(
        (what for beginning, what in _OTHER_NETS.items() if any(f".{beginning}" in f".{n}" for n in names)), None
    )


def _describe(content: Any, names: Sequence[str], tensors: list[str]) -> str:
    if tensors:
        return f"another net, with tensors such as {listing(tensors)}; name another file"
    if {"state", "param_groups"} <= set(names):
        return "an optimiser's state alone; name the file with the net's state_dict()"
    if isinstance(content, list | tuple) and (count := sum(map(torch.is_tensor, content))):
        return f"{count} tensors without names; save the net's state_dict(), which has them"
    return f"{_describe_object(content)}; name another file"


def _describe_object(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = listing([text_of(key) for key in content])
        return f"a dictionary without tensors, with the keys {keys}" if keys else "an empty dictionary"
    return "a lone object without tensors" if isinstance(content, StandIn) else f"a lone {type(content).__name__}"


def text_of(key: Any) -> str:
    """A dictionary's key as text."""
    try:
        return str(key)
    except ValueError:  # Python writes out no number of more than some 4,300 digits
        return f"a number of {key.bit_length():,} bits"


def _is_array(value: Any) -> bool:
    pickled = isinstance(value, StandIn) and value.class_name.endswith("multiarray._reconstruct")
    return pickled or isinstance(value, np.ndarray)


def _lost_names() -> re.Pattern[str]:
    """Of a layout's fingerprint where a Sequential's number stands for a child of the net."""
    own = [layout.fingerprint.partition(".") for layout in LAYOUTS.values()]
    tails = {re.escape(tail) for child, _, tail in own if not child.isdigit()}
    return re.compile(rf"(?:.+\.)?\d+\.(?:{'|'.join(sorted(tails))})")


_LOST_NAMES = _lost_names()


def _has_lost_its_name(name: str) -> bool:
    return len(name) < 1000 and _LOST_NAMES.fullmatch(name) is not None


def _explain_lost_names(name: str, tensors: Mapping[str, torch.Tensor]) -> str:
    headless = "" if any(tensor.ndim == 2 for tensor in tensors.values()) else "; then convert with --backbone"
    return (
        f"a ShuffleNetV2 whose own names are lost, as in nn.Sequential(*net.children()) ({printable(name, 300)}); load "
        f"it into such a Sequential of a new net's children, and save that net's state_dict(){headless}"
    )
