"""Finding the ShuffleNetV2 in a file's content: behind which wrapper and prefix, in which layout, with what head."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from convert.errors import ConvertError, listing
from convert.layouts import LAYOUTS, Layout
from convert.mapping import Tensors, infer_architecture, torch_names
from flax_shufflenet import Architecture
from flax_shufflenet.architecture import family_fields

Stem = Literal["cifar", "imagenet"]

_MAX_DEPTH = 8

# Counters that profilers and averaging leave among a net's buffers.
_BYSTANDERS = ("total_ops", "total_params", "n_averaged")

# Keys that tell other architectures, for the refusal to name.
_OTHER_NETS = {
    "_packed_params": "an int8-quantised net; save the float net's state_dict() before quantising",
    "stage2.0.g_conv_1x1_compress": "ShuffleNet version 1",
    "layer1.0.downsample": "a ResNet",
    "layer1.0.shortcut": "a ResNet",
    "layer1.0.conv1": "a ResNet",
    "layer1.0.bn3": "a ResNet or ShuffleNet version 1",
    "features.0.branch_main_1": "ShuffleNetV2+",
    "features.denseblock1": "a DenseNet",
    "features.1.conv.0.0": "MobileNetV2",
    "features.1.block.0.0": "MobileNetV3 or EfficientNet",
    "features.3.squeeze": "SqueezeNet",
    "layers.0.conv1": "a MobileNet of kuangliu/pytorch-cifar",
    "Conv2d_1a_3x3": "an Inception net",
    "encoder.layers.encoder_layer_0": "a vision transformer",
    "blocks.0.attn": "a vision transformer",
    "features.0": "a VGG net or AlexNet",
}


@dataclass(frozen=True)
class Net:
    """One ShuffleNetV2's tensors under its layout's own names, and what finding it took."""

    layout: Layout
    architecture: Architecture
    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    """What the file leaves open or had beside the net, for the report."""
    counts_absent: bool
    """The file has no num_batches_tracked; zeros stand for them."""


@dataclass(frozen=True)
class _Candidate:
    """A mapping in the content that holds a net of some layout, after a prefix."""

    where: str
    tensors: dict[str, torch.Tensor]
    layout: Layout
    prefix: str

    @property
    def is_average(self) -> bool:
        return any("ema" in part.lower() for part in self.where.replace("_", ".").split("."))

    @property
    def place(self) -> str:
        return f"{self.where}.{self.prefix}".strip(".") or "top level"


def find_net(
    content: Any, *, stem: Stem | None = None, use_ema: bool = False, backbone: bool = False, key: str | None = None
) -> Net:
    """The one net that a file's content holds.

    Args:
        content: nested mappings, as ``convert.read.read`` gives them, or a state_dict.
        stem: what the first layers do where the tensors cannot tell (torchvision's and chenyaofo's names).
        use_ema: take the averaged weights that a trainer keeps beside the model.
        backbone: leave out the head and everything else that is not the backbone.
        key: take the net at this place, where a file holds several.

    Raises:
        ConvertError: no net, several nets, tensors left over, or values that no net has.
    """
    candidate = _choose(list(_candidates(content)), content, use_ema, key)
    layout = candidate.layout
    notes = [f"found at: {candidate.place}"]
    if layout.name in ("chenyaofo", "torchvision"):
        candidate_tensors, head_notes, absent = _take(candidate, backbone)
        layout, why = _decide_stem(candidate_tensors, layout, stem)
        notes.append(why)
    else:
        if stem is not None:
            raise ConvertError(f"--stem is for torchvision's and chenyaofo's names; this is a {layout.name} checkpoint")
        candidate_tensors, head_notes, absent = _take(candidate, backbone)
    tensors = _check_values(candidate_tensors)
    return Net(layout, infer_architecture(layout, tensors), tensors, (*notes, *head_notes), absent)


def _mappings(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping in the content, with the dotted path to it. argparse's namespaces are no place for a net."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    yield where, content
    for key, value in content.items():
        yield from _mappings(value, f"{where}.{key}".lstrip("."), depth + 1)


def _candidates(content: Any) -> Iterator[_Candidate]:
    for where, mapping in _mappings(content):
        tensors = {key: value for key, value in mapping.items() if isinstance(key, str) and torch.is_tensor(value)}
        for layout in LAYOUTS.values():
            if layout.name == "torchvision":
                continue  # chenyaofo has the same names; _decide_stem tells them apart
            for name in tensors:
                if name == layout.fingerprint or name.endswith(f".{layout.fingerprint}"):
                    yield _Candidate(where, tensors, layout, name.removesuffix(layout.fingerprint))


def _choose(candidates: list[_Candidate], content: Any, use_ema: bool, key: str | None) -> _Candidate:
    if key is not None:
        chosen = [candidate for candidate in candidates if candidate.place == key.strip(".")]
        if not chosen:
            places = listing([candidate.place for candidate in candidates]) or "none"
            raise ConvertError(f"no ShuffleNetV2 at --key {key}; there is: {places}")
    else:
        chosen = [candidate for candidate in candidates if candidate.is_average == use_ema]
        if candidates and not chosen:
            if use_ema:
                raise ConvertError("--use_ema: there are no averaged weights in this file")
            chosen = candidates  # a file of averaged weights alone
    if not chosen:
        raise ConvertError(f"no ShuffleNetV2 in it; it looks like {_describe(content)}")
    if len(chosen) > 1:
        places = ", ".join(candidate.place for candidate in chosen)
        raise ConvertError(f"holds {len(chosen)} nets; choose one with --key: {places}")
    return chosen[0]


def _describe(content: Any) -> str:
    names = [str(key) for _, mapping in _mappings(content) for key, value in mapping.items() if torch.is_tensor(value)]
    for part, what in _OTHER_NETS.items():
        if any(part in name for name in names):
            return what
    if names:
        return f"another net, with tensors such as {listing(names)}"
    if isinstance(content, Mapping):
        return f"a dictionary without tensors, with the keys {listing([str(key) for key in content])}"
    return f"a lone {type(content).__name__}"


def _take(candidate: _Candidate, backbone: bool) -> tuple[dict[str, torch.Tensor], list[str], bool]:
    """The net's tensors under the layout's own names; notes on the head and on what was left; counts absent?"""
    layout, prefix = candidate.layout, candidate.prefix
    blocks = infer_architecture(layout, _Renamed(candidate.tensors, prefix, layout.root)).stage_blocks
    conv_bias = bool(family_fields(layout.name)["conv_bias"])
    trunk_names = _trunk_names(layout, blocks, conv_bias)
    found, rest = {}, {}
    for name, tensor in candidate.tensors.items():
        own_name = layout.root + name.removeprefix(prefix)
        if name.startswith(prefix) and own_name in trunk_names:
            found[own_name] = tensor
        else:
            rest[name] = tensor
    notes = []
    ignored = [name for name in rest if name.rpartition(".")[2] in _BYSTANDERS]
    for name in ignored:
        del rest[name]
    if ignored:
        notes.append(f"left out: {listing(ignored)}")

    # Old PyTorch versions did not count batches.
    counts = [name for name in trunk_names if name.endswith(".num_batches_tracked")]
    absent = not any(name in found for name in counts)
    if absent:
        found.update({name: torch.tensor(0) for name in counts})
        notes.append("the file has no num_batches_tracked; zeros stand for them")

    if backbone:
        if rest:
            notes.append(f"left out: {len(rest)} tensors that are not the backbone's ({listing(list(rest))})")
    else:
        head = _find_head(rest, layout, prefix, features=found[_last_conv(layout, blocks)].shape[0])
        for own_name, name in head.items():
            found[own_name] = rest.pop(name)
        if head and (taken := head[f"{layout.head}.weight"].removesuffix(".weight")) != prefix + layout.head:
            notes.append(f"head: {taken}, the one linear layer that fits ({layout.head} in this layout)")
        if rest:
            raise ConvertError(
                f"the tensors do not make a {layout.name} ShuffleNetV2: "
                f"{listing([f'{name} belongs to no part of the net' for name in rest])}; "
                "--backbone takes the backbone alone"
            )
    if f"{layout.head}.weight" not in found:
        notes.append("no head: the net returns its pooled features")
    return found, notes, absent


class _Renamed(dict[str, torch.Tensor]):
    """The tensors after a prefix, under the layout's own names."""

    def __init__(self, tensors: Tensors, prefix: str, root: str) -> None:
        super().__init__(
            {root + name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )


def _trunk_names(layout: Layout, stage_blocks: tuple[int, ...], conv_bias: bool) -> set[str]:
    width = 2 ** (3 + len(stage_blocks))
    headless = Architecture(
        stage_widths=(width,) * len(stage_blocks), stage_blocks=stage_blocks, num_classes=0, conv_bias=conv_bias
    )
    return set(torch_names(layout, headless).values())


def _last_conv(layout: Layout, stage_blocks: tuple[int, ...]) -> str:
    return next(part.conv for part in layout.parts(stage_blocks) if part.flax == "last") + ".weight"


def _find_head(rest: Tensors, layout: Layout, prefix: str, features: int) -> dict[str, str]:
    """The head's tensors, own name to found name: under its usual name, or the one linear layer that fits."""
    linear = [
        name.removesuffix(".weight")
        for name, tensor in rest.items()
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] == features
    ]
    usual = [name for name in linear if name == prefix.removesuffix(layout.root) + layout.head]
    if not usual and len(linear) != 1:
        return {}
    (head,) = usual or linear
    return {f"{layout.head}.{kind}": f"{head}.{kind}" for kind in ("weight", "bias") if f"{head}.{kind}" in rest}


def _decide_stem(tensors: Tensors, layout: Layout, stem: Stem | None) -> tuple[Layout, str]:
    """torchvision and chenyaofo differ only in the stem's stride and pool, which leave no trace in the tensors."""
    head = tensors.get(f"{layout.head}.weight")
    classes = 0 if head is None else head.shape[0]
    if stem is None:
        stem = "cifar" if classes in (10, 100) else "imagenet"
        reason = f"assumed from its {classes} classes" if classes else "assumed, there is no class count to go by"
        other = "imagenet" if stem == "cifar" else "cifar"
        reason += f"; the tensors cannot tell, and the wrong stem ruins the accuracy: --stem {other} if it is"
    else:
        reason = "as given by --stem"
    described = {"cifar": "stride 1", "imagenet": "stride 2 and a max-pool"}[stem]
    return LAYOUTS["chenyaofo" if stem == "cifar" else "torchvision"], f"stem: {stem} ({described}), {reason}"


def _check_values(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plain dense tensors with values that a net can have.

    Raises:
        ConvertError: another kind of tensor or dtype, NaN or infinite values, or a negative variance.
    """
    problems = [f"{name} is {problem}" for name, tensor in tensors.items() if (problem := _problem(name, tensor))]
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if torch.float64 in dtypes and len(dtypes) > 1:
        problems.append("some weights are float64 and others are not; make them all one dtype")
    if problems:
        raise ConvertError(listing(problems))
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _problem(name: str, tensor: torch.Tensor) -> str | None:
    if tensor.is_quantized:
        return "int8-quantised; save the float net's state_dict() before quantising"
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"a {str(tensor.layout).removeprefix('torch.')} tensor on device {tensor.device}, not a plain one"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{list(tensor.shape)}, more than what is stored of it"
    if name.endswith(".num_batches_tracked"):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() != 1:
            return f"{tensor.dtype} of shape {list(tensor.shape)}, not a whole number"
        return None
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"{tensor.dtype}; weights are floating-point"
    if not bool(torch.isfinite(tensor).all()):
        return "not finite (NaN or infinity in it); the training diverged or the file is damaged"
    if name.endswith(".running_var") and bool((tensor < 0).any()):
        return "negative in places, which no variance is; the file is damaged"
    return None
