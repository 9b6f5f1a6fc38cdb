"""The PyTorch side: the seed's net, and the nets of other checkpoint layouts under their own key names."""

from torch_ref.seed import BasicBlock, DownBlock, ShuffleBlock, ShuffleNetV2, SplitBlock, configs

__all__ = ["BasicBlock", "DownBlock", "ShuffleBlock", "ShuffleNetV2", "SplitBlock", "configs"]
