"""ShuffleNetV2 in JAX/Flax, weight for weight and gradient for gradient the PyTorch net."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flax_shufflenet.architecture import FAMILIES, Architecture, preset, seed
    from flax_shufflenet.inference import FusedNet, fuse
    from flax_shufflenet.model import BasicBlock, DownBlock, ShuffleNetV2, channel_shuffle, channel_split
    from flax_shufflenet.weights import load, read_metadata, save

__all__ = [
    "FAMILIES",
    "Architecture",
    "BasicBlock",
    "DownBlock",
    "FusedNet",
    "ShuffleNetV2",
    "channel_shuffle",
    "channel_split",
    "fuse",
    "load",
    "preset",
    "read_metadata",
    "save",
    "seed",
]

# JAX and Flax take over a second to import, which a command's --help and its refusals should not wait for.
_MODULES = {
    **dict.fromkeys(("FAMILIES", "Architecture", "preset", "seed"), "architecture"),
    **dict.fromkeys(("FusedNet", "fuse"), "inference"),
    **dict.fromkeys(("BasicBlock", "DownBlock", "ShuffleNetV2", "channel_shuffle", "channel_split"), "model"),
    **dict.fromkeys(("load", "read_metadata", "save"), "weights"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
