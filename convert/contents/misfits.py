"""Tensors under a layout's names that make no net of it: what they are instead, and what helps."""

from collections.abc import Collection
from typing import NoReturn

from convert.errors import ConvertError, listing, printable
from convert.layouts import Layout
from flax_shufflenet import Architecture

_STATISTICS = ("running_mean", "running_var")
_OBSERVERS = ("fake_quant", "activation_post_process")


def check_normalisations(layout: Layout, architecture: Architecture, names: Collection[str]) -> None:
    """Every convolution has its batch normalisation, with running statistics, among a net's ``names``.

    Raises:
        ConvertError: the batch normalisations are folded into the convolutions, or there are none, or they have no
            running statistics. One that is missing alone is not looked for.
    """
    parts = [part for part in layout.parts_of(architecture) if f"{part.conv}.weight" in names]
    bare = [part for part in parts if not any(f"{part.bn}.{own}" in names for own in ("weight", "bias", *_STATISTICS))]
    if folded := [part.conv for part in bare if f"{part.conv}.bias" in names]:
        more = f", and so have {len(folded) - 1} more" if len(folded) > 1 else ""
        raise ConvertError(
            f"its batch normalisations are folded into its convolutions ({folded[0]} has a bias and no batch "
            f"normalisation{more}), which cannot be undone; convert the net as it was before"
        )
    if parts and len(bare) == len(parts):
        raise ConvertError(
            f"it has no batch normalisations ({parts[0].bn} and so on), which every ShuffleNetV2 has; it is another "
            "net, and cannot be converted"
        )
    if parts and not any(f"{part.bn}.{own}" in names for part in parts for own in _STATISTICS):
        raise ConvertError(
            f"it has no running statistics ({parts[0].bn}.running_mean and so on); if its parameters alone were saved, "
            "save its state_dict(), which has them; if its normalisation keeps none, as GroupNorm does, it cannot be "
            "converted"
        )


def tensors_inside(layout: Layout, architecture: Architecture, prefix: str, names: Collection[str]) -> list[str]:
    """Those of ``names`` that stand, after the net's prefix, under a name of the stem, of a stage, of one of its blocks
    or of the last convolution."""
    units = [name for part in layout.parts_of(architecture) for name in (part.conv, part.bn)]
    parts = [unit.removeprefix(layout.root) for unit in units]
    blocks = [block.removeprefix(layout.root) for _, _, block in layout.blocks(architecture.stage_blocks)]
    stages = {parent for block in blocks if (parent := block.rpartition(".")[0])}
    around = {parent for part in parts if (parent := part.rpartition(".")[0])}
    modules = tuple(f"{prefix}{module}." for module in {*parts, *blocks, *stages, *around})
    return [name for name in names if name.startswith(modules)]


def refuse_inside(layout: Layout, architecture: Architecture, prefix: str, names: list[str]) -> NoReturn:
    """Of tensors inside the net where its layout has nothing.

    Raises:
        ConvertError: always. No option helps: without them, the rest is another net.
    """
    if any(part in name for name in names for part in _OBSERVERS):
        raise ConvertError(
            f"{listing(names)} inside the net: it was prepared for quantisation; save the float net's state_dict() as "
            "it was before"
        )
    convolutions = {f"{prefix}{part.conv.removeprefix(layout.root)}.bias" for part in layout.parts_of(architecture)}
    what = "tensors"
    if convolutions.issuperset(names):
        what = "biases of convolutions"
    elif all(_is_excitation(name) for name in names):
        what = "squeeze-and-excitation layers"
    raise ConvertError(
        f"{what} that a {layout.called} ShuffleNetV2 does not have, inside the net ({listing(names)}); it computes "
        "something else with the same convolutions, and cannot be converted"
    )


def _is_excitation(name: str) -> bool:
    return any(part in ("se", "selayer") or "squeeze" in part or "excit" in part for part in name.lower().split("."))


def refuse_leftovers(layout: Layout, net_prefix: str, place: str, names: list[str], head: Collection[str]) -> NoReturn:
    """Of tensors outside the backbone that are not the head's; ``head`` are the names of those that are.

    Raises:
        ConvertError: always.
    """
    own_head = f"{net_prefix}{layout.head}."
    if all(name.startswith(own_head) for name in names):
        layers = dict.fromkeys(name.rpartition(".")[0] for name in sorted([*head, *names]))
        raise ConvertError(
            f"its head has several layers ({listing(list(layers), shown=6)}), a {layout.called} ShuffleNetV2's is one "
            "linear layer; --backbone takes the net without them, which then returns its pooled features"
        )
    if head and not any(name.startswith(net_prefix) for name in names):
        remedy = f"--key {printable(place, 200)} takes the net there without them"
    else:
        remedy = (
            "--backbone leaves out what is not the backbone's, which is right of a head or a detector behind the last "
            "stage; layers between the stages make it another net"
        )
    unknown = listing([f"{name} belongs to no part of the net" for name in names])
    raise ConvertError(f"the tensors do not make a {layout.called} ShuffleNetV2: {unknown}; {remedy}")
