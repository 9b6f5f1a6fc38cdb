"""ShuffleNetV2 in JAX/Flax, weight for weight and gradient for gradient the PyTorch net."""

from flax_shufflenet.architecture import FAMILIES, Architecture, preset, seed
from flax_shufflenet.model import BasicBlock, DownBlock, ShuffleNetV2, channel_shuffle, channel_split
from flax_shufflenet.weights import load, read_metadata, save

__all__ = [
    "FAMILIES",
    "Architecture",
    "BasicBlock",
    "DownBlock",
    "ShuffleNetV2",
    "channel_shuffle",
    "channel_split",
    "load",
    "preset",
    "read_metadata",
    "save",
    "seed",
]
