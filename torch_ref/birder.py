"""ShuffleNetV2 under the key names of the package birder (birder/net/shufflenet_v2.py).

torchvision's graph in a body and a head, each pointwise convolution with its BN and ReLU in a Sequential of its own.
"""

from collections import OrderedDict

import torch
from torch import nn

from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of
from torch_ref.torchvision import configs, conv_bn_relu

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "configs"]


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


def _right(in_channels: int, mid_channels: int, stride: int) -> nn.Sequential:
    """Indices: 0 pointwise, 1 depthwise, 2 its BN, 3 pointwise; 0.0 and 3.0 convolutions, 0.1 and 3.1 BNs."""
    return nn.Sequential(
        conv_bn_relu(in_channels, mid_channels, 1),
        _depthwise(mid_channels, stride),
        nn.BatchNorm2d(mid_channels),
        conv_bn_relu(mid_channels, mid_channels, 1),
    )


class BasicBlock(nn.Module):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, split_ratio: float = 0.5) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.branch2 = _right(width, width, stride=1)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.branch2(x2)], 1))


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        self.branch1 = nn.Sequential(
            _depthwise(in_channels, stride=2),
            nn.BatchNorm2d(in_channels),
            conv_bn_relu(in_channels, mid_channels, 1),
        )
        self.branch2 = _right(in_channels, mid_channels, stride=2)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1))


class ShuffleNetV2(nn.Module):
    """birder's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

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

        self.stem = conv_bn_relu(3, stem_channels, 3, stride=2)
        stages: OrderedDict[str, nn.Module] = OrderedDict(stage1=nn.MaxPool2d(3, stride=2, padding=1))
        in_channels = stem_channels
        for number, (out_channels, blocks) in enumerate(zip(stage_channels, config["num_blocks"], strict=True), 2):
            basics = (BasicBlock(out_channels, split_ratio) for _ in range(blocks))
            stages[f"stage{number}"] = nn.Sequential(DownBlock(in_channels, out_channels), *basics)
            in_channels = out_channels
        self.body = nn.Sequential(stages)
        self.features = nn.Sequential(
            conv_bn_relu(in_channels, last_channels, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
        )
        self.classifier = None if num_classes is None else nn.Linear(last_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.features(self.body(self.stem(x)))
        return out if self.classifier is None else self.classifier(out)
