"""Weights that a file holds only as what they are computed from: weight and spectral normalisation.

They stand under the weights' own names here, so that the net is found; a net that has one of them is refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch

from convert.errors import ConvertError, printable
from convert.mapping import Tensors

# torch.nn.utils.parametrize's names: MODULE.parametrizations.TENSOR.original, or .original0 and so on, and what the
# parametrization itself keeps, under its number.
_PARAMETRIZATION = re.compile(
    r"(?P<module>(?:.+\.)?)parametrizations\.(?P<tensor>[^.]+)\.(?P<part>original\d*|\d+\..+)"
)


@dataclass(frozen=True)
class Parametrised:
    """How a weight is stored."""

    how: str
    parts: tuple[str, ...]
    """The names of what it is computed from."""
    undone_by: str


def under_plain_names(tensors: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, Parametrised]]:
    """The same tensors, where a parametrised weight's largest part, which has its shape, stands under its name instead
    of its parts; and how each of these is stored."""
    found = _by_hooks(tensors) | _by_parametrizations(tensors)
    if not found:
        return dict(tensors), {}
    parts = {part for weight in found.values() for part in weight.parts}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts}
    for name, weight in found.items():
        plain[name] = max((tensors[part] for part in weight.parts), key=torch.Tensor.numel)
    return plain, found


def _by_hooks(tensors: Tensors) -> dict[str, Parametrised]:
    """As torch.nn.utils.weight_norm and spectral_norm store them."""
    found = {}
    for how, endings, undo in (
        ("weight normalisation", ("_g", "_v"), "remove_weight_norm"),
        ("spectral normalisation", ("_orig", "_u", "_v"), "remove_spectral_norm"),
    ):
        for name in (name.removesuffix(endings[0]) for name in tensors if name.endswith(f"weight{endings[0]}")):
            parts = tuple(f"{name}{ending}" for ending in endings)
            if name not in tensors and all(part in tensors for part in parts):
                found[name] = Parametrised(how, parts, f"torch.nn.utils.{undo}(layer)")
    return found


def _by_parametrizations(tensors: Tensors) -> dict[str, Parametrised]:
    """As torch.nn.utils.parametrize stores them."""
    parts: dict[tuple[str, str], list[str]] = {}
    for match in filter(None, map(_PARAMETRIZATION.fullmatch, tensors)):
        parts.setdefault((match["module"], match["tensor"]), []).append(match[0])
    found = {}
    for (module, tensor), names in parts.items():
        own = {name.removeprefix(f"{module}parametrizations.{tensor}.") for name in names}
        how = "a parametrization"
        if own == {"original0", "original1"}:
            how = "weight normalisation"
        elif "0._u" in own:
            how = "spectral normalisation"
        undo = f"torch.nn.utils.parametrize.remove_parametrizations(layer, {tensor!r})"
        if f"{module}{tensor}" not in tensors:
            found[f"{module}{tensor}"] = Parametrised(how, tuple(names), undo)
    return found


def check_none(names: Iterable[str], parametrised: Mapping[str, Parametrised]) -> None:
    """None of these tensors is only stored as what it is computed from.

    Raises:
        ConvertError: one is; the message says how to store the weights themselves.
    """
    own = [name for name in names if name in parametrised]
    if own:
        _refuse(own, parametrised[own[0]])


def _refuse(names: list[str], first: Parametrised) -> NoReturn:
    parts = " and ".join(printable(part, 300) for part in first.parts[:2])
    more = f", and so are {len(names) - 1} more" if len(names) > 1 else ""
    raise ConvertError(
        f"the net has {first.how}: {printable(names[0], 300)} is stored as {parts}{more}; call {first.undone_by} for "
        "each of these layers, and save the net's state_dict() again"
    )
