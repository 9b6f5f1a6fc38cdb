"""ShuffleNetV2 under the key names of ericsun99/Shufflenet-v2-Pytorch (ShuffleNetV2.py), "banch" included.

torchvision's graph with all blocks in one flat list and a pooling of fixed size; like the seed, 224 wide at 2.0.
"""

import torch
from torch import nn

from torch_ref.kuangliu import average_pool_to_1x1
from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of, configs
from torch_ref.torchvision import conv_bn_relu, left_branch, right_branch

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "configs"]


class BasicBlock(nn.Module):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, split_ratio: float = 0.5) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.banch2 = right_branch(width, width, width, stride=1)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.banch2(x2)], 1))


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        self.banch1 = left_branch(in_channels, mid_channels)
        self.banch2 = right_branch(in_channels, mid_channels, mid_channels, stride=2)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.banch1(x), self.banch2(x)], 1))


class ShuffleNetV2(nn.Module):
    """ericsun99's net: [N, 3, 224, 224] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given; in ``forward``, the images do
            not leave a 1x1 map after the 7x7 pooling.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = 1000,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        *stage_channels, last_channels = config["out_channels"]

        self.conv1 = conv_bn_relu(3, stem_channels, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        in_channels = stem_channels
        for out_channels, num_blocks in zip(stage_channels, config["num_blocks"], strict=True):
            blocks.append(DownBlock(in_channels, out_channels))
            blocks += [BasicBlock(out_channels, split_ratio) for _ in range(num_blocks)]
            in_channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.conv_last = conv_bn_relu(in_channels, last_channels, 1)
        self.classifier = None if num_classes is None else nn.Sequential(nn.Linear(last_channels, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv_last(self.features(self.maxpool(self.conv1(x))))
        out = average_pool_to_1x1(out, 7)
        return out if self.classifier is None else self.classifier(out)
