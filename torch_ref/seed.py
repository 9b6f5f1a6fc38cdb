"""The PyTorch ShuffleNetV2 that this project ports, in the seed's names, state_dict keys and initial weights.

Ningning Ma, Xiangyu Zhang, Hai-Tao Zheng, Jian Sun. ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design. ECCV 2018. The paper's four guidelines: equal input and output widths minimise memory
access; too much group convolution adds to it; fragmentation costs parallelism; element-wise operations count.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import nn


class Config(TypedDict):
    """Widths of the three stages and of the last convolution, and basic blocks in each stage."""

    out_channels: Sequence[int]
    num_blocks: Sequence[int]


# 224 is not the paper's width at 2.0 (244 is), but it is the seed's.
configs: dict[float, Config] = {
    0.5: {"out_channels": (48, 96, 192, 1024), "num_blocks": (3, 7, 3)},
    1.0: {"out_channels": (116, 232, 464, 1024), "num_blocks": (3, 7, 3)},
    1.5: {"out_channels": (176, 352, 704, 1024), "num_blocks": (3, 7, 3)},
    2.0: {"out_channels": (224, 488, 976, 2048), "num_blocks": (3, 7, 3)},
}


def config_of(net_size: float, configs: Mapping[float, Config]) -> Config:
    """The entry of ``configs`` for ``net_size``; ValueError when there is none."""
    if net_size not in configs:
        raise ValueError(f"net_size must be one of {', '.join(map(str, configs))}, not {net_size}")
    return configs[net_size]


class ShuffleBlock(nn.Module):
    """Channel shuffle: [N, C, H, W] -> [N, g, C/g, H, W] -> [N, C/g, g, H, W] -> [N, C, H, W]."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.size()
        g = self.groups
        return x.view(n, g, c // g, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


class SplitBlock(nn.Module):
    """Channel split: [N, C, H, W] -> the first int(C * ratio) channels, and the rest."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = int(x.size(1) * self.ratio)
        return x[:, :c], x[:, c:]


class BasicBlock(nn.Module):
    """Stride 1: one part passes, the other goes 1x1 - 3x3 depthwise - 1x1; concatenated, then shuffled.

    [N, C, H, W] -> [N, C, H, W]. The branch is as wide as what the split leaves for it; at the seed's
    ratio of 0.5 that is C / 2.
    """

    def __init__(self, in_channels: int, split_ratio: float = 0.5) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.conv1 = nn.Conv2d(width, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=1, padding=1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        out = F.relu(self.bn1(self.conv1(x2)))
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)))
        return self.shuffle(torch.cat([x1, out], 1))


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels; concatenated, then shuffled. The seed has no ReLU here.

    [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        self.branch1 = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=2, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, mid_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(mid_channels),
        )
        self.branch2 = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.Conv2d(mid_channels, mid_channels, kernel_size=3, stride=2, padding=1, groups=mid_channels, bias=False),
            nn.BatchNorm2d(mid_channels),
            nn.Conv2d(mid_channels, mid_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(mid_channels),
        )
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1))


class ShuffleNetV2(nn.Module):
    """The seed's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the classifier; None for a backbone, which returns the pooled features.
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the first convolution.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = 10,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        *stage_channels, last_channels = config["out_channels"]

        self.conv1 = nn.Conv2d(3, stem_channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.in_channels = stem_channels
        self.split_ratio = split_ratio
        self.layer1, self.layer2, self.layer3 = (
            self._make_layer(out_channels, num_blocks)
            for out_channels, num_blocks in zip(stage_channels, config["num_blocks"], strict=True)
        )
        self.conv2 = nn.Conv2d(self.in_channels, last_channels, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(last_channels)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        if num_classes is not None:
            self.classifier = nn.Linear(last_channels, num_classes)
        self._initialize_weights()

    def _make_layer(self, out_channels: int, num_blocks: int) -> nn.Sequential:
        layers: list[nn.Module] = [DownBlock(self.in_channels, out_channels)]
        layers += [BasicBlock(out_channels, self.split_ratio) for _ in range(num_blocks)]
        self.in_channels = out_channels
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.avg_pool(out)
        out = out.view(out.size(0), -1)
        return self.classifier(out) if hasattr(self, "classifier") else out

    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1)
                nn.init.constant_(module.bias, 0)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.constant_(module.bias, 0)
