"""ShuffleNetV2 in JAX/Flax, weight for weight and gradient for gradient the PyTorch net."""

from typing import TYPE_CHECKING

from flax_shufflenet.lazy import first_asked_for

if TYPE_CHECKING:
    from flax_shufflenet.architecture import FAMILIES, Architecture, preset, seed
    from flax_shufflenet.images.pixel_net import of_pixels, read_preprocessing
    from flax_shufflenet.images.preprocessing import Preprocessing
    from flax_shufflenet.inference import FusedNet, fuse
    from flax_shufflenet.model import BasicBlock, DownBlock, ShuffleNetV2, channel_shuffle, channel_split
    from flax_shufflenet.shipped.nets import pretrained
    from flax_shufflenet.weights import load, read_metadata, save

__all__ = [
    "FAMILIES",
    "Architecture",
    "BasicBlock",
    "DownBlock",
    "FusedNet",
    "Preprocessing",
    "ShuffleNetV2",
    "channel_shuffle",
    "channel_split",
    "fuse",
    "load",
    "of_pixels",
    "preset",
    "pretrained",
    "read_metadata",
    "read_preprocessing",
    "save",
    "seed",
]

_MODULES = {
    **dict.fromkeys(("FAMILIES", "Architecture", "preset", "seed"), "architecture"),
    **dict.fromkeys(("FusedNet", "fuse"), "inference"),
    **dict.fromkeys(("BasicBlock", "DownBlock", "ShuffleNetV2", "channel_shuffle", "channel_split"), "model"),
    **dict.fromkeys(("of_pixels", "read_preprocessing"), "images.pixel_net"),
    "Preprocessing": "images.preprocessing",
    "pretrained": "shipped.nets",
    **dict.fromkeys(("load", "read_metadata", "save"), "weights"),
}

__getattr__, __dir__ = first_asked_for(__name__, _MODULES)
