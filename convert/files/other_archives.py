"""Zip archives that are no checkpoints of PyTorch's, by the names in them: what they are, and what helps."""

from collections.abc import Sequence

from convert.errors import listing

_CHECKPOINTS = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")

AS_TENSORS = (
    "save them as tensors, with torch.save({name: torch.as_tensor(array) for name, array in arrays.items()}, 'net.pt')"
)


def explain(names: Sequence[str]) -> str:
    """The refusal of an archive with these entries."""
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy's archive of arrays, as numpy.savez writes it; {AS_TENSORS}"
    if any(name.endswith(("/byteorder", "/.data/serialization_id")) for name in names):
        return "an archive that torch.save began and did not finish; save the net's state_dict()"
    if "program.jax" in names:
        return "a program that flax-shufflenet export wrote; name the net's .safetensors file that it was made from"
    if any(name.endswith("model.weights.h5") for name in names):
        return "a Keras file; there is no way from Keras here, only from PyTorch checkpoints"
    if inside := [name for name in names if name.endswith(_CHECKPOINTS)]:
        return f"a zip archive with checkpoints in it; unpack it and name one of them ({listing(inside)})"
    return f"a zip archive, but not a checkpoint that torch.save wrote; in it are {listing(list(names)) or 'no files'}"


def explain_large_pickle(what: str, beginning: bytes) -> str:
    """The refusal of a pickle that is larger than the names of tensors are; ``what`` says which it is and how large."""
    if b"numpy" in beginning and b"_reconstruct" in beginning:
        return f"{what}, too many for the names of tensors: NumPy arrays are in it; {AS_TENSORS}"
    return f"{what}, too many for the names of tensors; save the net's state_dict() alone"
