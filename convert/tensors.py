"""What a tensor has to be before its values are used: a file, or a dictionary in memory, may hold any kind."""

from collections.abc import Iterable

import torch

from convert.errors import ConvertError

_MAX_SHARING = 8


def has_plain_bytes(tensor: torch.Tensor) -> bool:
    """Dense real numbers in the CPU's memory, as many as its shape says."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return plain and not tensor.is_complex() and tensor.nbytes <= tensor.untyped_storage().nbytes()


def check_sharing(tensors: Iterable[torch.Tensor], what: str) -> None:
    """A few bytes that many tensors share must not grow without bound where each gets memory of its own.

    Raises:
        ConvertError: they do; the message calls them ``what``.
    """
    tensors = list(tensors)
    claimed = sum(tensor.nbytes for tensor in tensors)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    stored = sum(storages.values())
    if claimed > _MAX_SHARING * stored:
        raise ConvertError(f"{what} of {claimed:,} bytes share {stored:,}; save a clone() of each tensor")
