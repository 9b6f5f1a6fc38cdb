"""ShuffleNetV2 under the key names of weiaicunzai/pytorch-cifar100 (models/shufflenetv2.py).

Every convolution has a bias, the stem has no ReLU, and the right branch of a down block keeps the width of its
input up to its last convolution.
"""

import torch
from torch import nn

from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of
from torch_ref.torchvision import configs, left_branch, right_branch

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "configs"]


class BasicBlock(nn.Module):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, split_ratio: float = 0.5) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.residual = right_branch(width, width, width, stride=1, bias=True)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.residual(x2)], 1))


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = right_branch(in_channels, in_channels, out_channels // 2, stride=2, bias=True)
        self.shortcut = left_branch(in_channels, out_channels // 2, bias=True)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.shortcut(x), self.residual(x)], 1))


def _stage(in_channels: int, out_channels: int, num_blocks: int, split_ratio: float) -> nn.Sequential:
    blocks = [BasicBlock(out_channels, split_ratio) for _ in range(num_blocks)]
    return nn.Sequential(DownBlock(in_channels, out_channels), *blocks)


class ShuffleNetV2(nn.Module):
    """weiaicunzai's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = 100,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        c1, c2, c3, last_channels = config["out_channels"]
        n1, n2, n3 = config["num_blocks"]

        self.pre = nn.Sequential(nn.Conv2d(3, stem_channels, 3, padding=1), nn.BatchNorm2d(stem_channels))
        self.stage2 = _stage(stem_channels, c1, n1, split_ratio)
        self.stage3 = _stage(c1, c2, n2, split_ratio)
        self.stage4 = _stage(c2, c3, n3, split_ratio)
        self.conv5 = nn.Sequential(nn.Conv2d(c3, last_channels, 1), nn.BatchNorm2d(last_channels), nn.ReLU())
        self.fc = None if num_classes is None else nn.Linear(last_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.pre(x)
        out = self.conv5(self.stage4(self.stage3(self.stage2(out))))
        out = out.mean((2, 3))
        return out if self.fc is None else self.fc(out)
