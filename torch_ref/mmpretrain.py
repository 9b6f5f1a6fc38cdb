"""ShuffleNetV2 under the key names of open-mmlab/mmpretrain (mmpretrain/models/backbones/shufflenet_v2.py).

torchvision's graph, in a backbone and a head, with each convolution and its BN in one named pair.
"""

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import nn

from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of
from torch_ref.torchvision import configs

__all__ = ["Backbone", "BasicBlock", "ConvModule", "DownBlock", "Head", "ShuffleNetV2", "configs"]


class ConvModule(nn.Module):
    """Convolution, BN and, unless it is depthwise, ReLU.

    [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=in_channels if depthwise else 1,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.depthwise = depthwise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn(self.conv(x))
        return out if self.depthwise else F.relu(out)


class BasicBlock(nn.Module):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, split_ratio: float = 0.5) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.branch2 = nn.Sequential(
            ConvModule(width, width, 1),
            ConvModule(width, width, 3, depthwise=True),
            ConvModule(width, width, 1),
        )
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
            ConvModule(in_channels, in_channels, 3, stride=2, depthwise=True),
            ConvModule(in_channels, mid_channels, 1),
        )
        self.branch2 = nn.Sequential(
            ConvModule(in_channels, mid_channels, 1),
            ConvModule(mid_channels, mid_channels, 3, stride=2, depthwise=True),
            ConvModule(mid_channels, mid_channels, 1),
        )
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1))


class Backbone(nn.Module):
    """Stem, stages and last convolution: [N, 3, H, W] -> [N, last, ceil(H / 32), ceil(W / 32)]."""

    def __init__(self, config: Config, split_ratio: float, stem_channels: int) -> None:
        super().__init__()
        *stage_channels, last_channels = config["out_channels"]
        self.conv1 = ConvModule(3, stem_channels, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        layers: list[nn.Module] = []
        in_channels = stem_channels
        for out_channels, num_blocks in zip(stage_channels, config["num_blocks"], strict=True):
            blocks = [BasicBlock(out_channels, split_ratio) for _ in range(num_blocks)]
            layers.append(nn.Sequential(DownBlock(in_channels, out_channels), *blocks))
            in_channels = out_channels
        layers.append(ConvModule(in_channels, last_channels, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.maxpool(self.conv1(x)))


class Head(nn.Module):
    """Linear classifier: [N, C] -> [N, num_classes]."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


class ShuffleNetV2(nn.Module):
    """mmpretrain's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

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
        self.backbone = Backbone(config, split_ratio, stem_channels)
        self.head = None if num_classes is None else Head(config["out_channels"][-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.backbone(x).mean((2, 3))
        return out if self.head is None else self.head(out)
