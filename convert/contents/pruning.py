"""Nets that ``torch.nn.utils.prune`` has pruned: each weight is its ``weight_orig`` times its ``weight_mask``."""

import torch

from convert.contents.tensors import check_sharing, has_plain_bytes
from convert.errors import ConvertError
from convert.mapping import Tensors


def masked_names(tensors: Tensors) -> list[str]:
    """The names of the parameters that are stored as an original and a mask."""
    originals = (name.removesuffix("_orig") for name in tensors if name.endswith("_orig"))
    return [name for name in originals if f"{name}_mask" in tensors and name not in tensors]


def apply_masks(tensors: Tensors) -> tuple[dict[str, torch.Tensor], str | None]:
    """The same tensors with each original and its mask replaced by their product, which is exact; and a line for the
    report, None where nothing is pruned.

    Raises:
        ConvertError: a mask of another shape or kind, or with other values than 0 and 1.
    """
    names = masked_names(tensors)
    if not names:
        return dict(tensors), None
    sources = [tensors[f"{name}_{kind}"] for name in names for kind in ("orig", "mask")]
    for name in names:
        _check(name, tensors[f"{name}_orig"], tensors[f"{name}_mask"])
    check_sharing(sources, "pruned tensors")  # a product has memory of its own
    products, zeros, count = {}, 0, 0
    for name in names:
        original, mask = tensors[f"{name}_orig"].detach(), tensors[f"{name}_mask"]
        products[name] = original * mask.to(original.dtype)
        zeros, count = zeros + int((mask == 0).sum()), count + mask.numel()
    parts = {f"{name}_{kind}" for name in names for kind in ("orig", "mask")}
    kept = {name: tensor for name, tensor in tensors.items() if name not in parts}
    share = f"{100 * zeros / count:.0f} %" if count else "none"
    return {**kept, **products}, f"pruned: {len(names)} tensors are their originals times their masks, {share} zeros"


def _check(name: str, original: torch.Tensor, mask: torch.Tensor) -> None:
    if not (has_plain_bytes(original) and has_plain_bytes(mask)):
        raise ConvertError(f"{name}_orig and {name}_mask have to be plain tensors on the CPU; save clones of them")
    if original.shape != mask.shape:
        raise ConvertError(
            f"{name}_orig has shape {list(original.shape)} and {name}_mask {list(mask.shape)}; the file is damaged"
        )
    if not original.is_floating_point() or not bool(((mask == 0) | (mask == 1)).all()):
        raise ConvertError(
            f"{name}_mask has other values than 0 and 1, or {name}_orig is no weight; bring the pruning into the "
            "weights with torch.nn.utils.prune.remove and save the state_dict() again"
        )
