"""What a tensor has to be before its values are used: a file, or a dictionary in memory, may hold any kind."""

from collections.abc import Iterable, Mapping

import torch

from convert.errors import ConvertError, listing, printable

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


def check_values(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A net's tensors as plain dense ones with values that a net can have; counts as whole numbers.

    Raises:
        ConvertError: another kind of tensor or dtype, NaN or infinite values, or a negative variance.
    """
    _check_dtypes({name: tensor for name, tensor in tensors.items() if not is_count(name)})
    problems = [f"{name} is {problem}" for name, tensor in tensors.items() if (problem := _problem(name, tensor))]
    if problems:
        raise ConvertError(listing(problems))
    check_sharing(tensors.values(), "tensors")
    return {
        name: tensor.detach().long() if is_count(name) else tensor.detach().contiguous()
        for name, tensor in tensors.items()
    }


def is_count(name: str) -> bool:
    """Whether a tensor of this name counts a batch normalisation's batches."""
    return name.endswith(".num_batches_tracked")


def _check_dtypes(weights: Mapping[str, torch.Tensor]) -> None:
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name, tensor in weights.items():
        if not tensor.is_quantized:
            by_dtype.setdefault(tensor.dtype, []).append(name)
    for dtype in by_dtype.keys() - {torch.float16, torch.bfloat16, torch.float32, torch.float64}:
        raise ConvertError(f"{_named(by_dtype[dtype])} {dtype}; {_instead_of(dtype)}")
    if torch.float64 in by_dtype and len(by_dtype) > 1:
        raise ConvertError(
            f"{_named(by_dtype[torch.float64])} torch.float64, and other weights are not; make them all one dtype: "
            "net.double() keeps every value"
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors are" if len(names) > 1 else " is"
    return printable(names[0], 300) + more


def _instead_of(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "weights are real; where the imaginary parts are 0, save tensor.real"
    if dtype.is_floating_point and dtype.itemsize == 1 and "x2" not in str(dtype):
        return "save tensor.to(torch.float32) of each, which has the same values"
    return "weights are floating-point, and rounding them to others cannot be undone; save the float net's state_dict()"


def _problem(name: str, tensor: torch.Tensor) -> str | None:
    if tensor.is_quantized:
        return "int8-quantised; save the float net's state_dict() before quantising"
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        kind = str(tensor.layout).removeprefix("torch.")
        return f"a {kind} tensor on device {tensor.device}; make it a plain one on the CPU"
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"{list(tensor.shape)}, more than is stored of it; save a clone() of it"
    if is_count(name):
        if tensor.numel() != 1 or tensor.is_complex():
            return f"{tensor.dtype} of shape {list(tensor.shape)}, not one whole number"
        count = float(tensor)
        return None if count.is_integer() and 0 <= count < 2**31 else f"{count:g}, not a count that int32 holds"
    if not bool(torch.isfinite(tensor).all()):
        return "not finite (NaN or infinity in it); the training diverged or the file is damaged"
    if name.endswith(".running_var") and bool((tensor < 0).any()):
        return "negative in places, which no variance is; the file is damaged"
    return None
