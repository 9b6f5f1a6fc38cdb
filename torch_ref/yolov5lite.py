"""The ShuffleNetV2 backbone of the YOLOv5-Lite detectors s and e, under its key names (ppogg/YOLOv5-Lite,
models/v5Lite-s.yaml).

torchvision's blocks in one numbered list: the stem, then for each stage its down block and its basic blocks. YOLOv5
builds all nets with batch normalisations that add 1e-3 to the variance, which no tensor of a checkpoint tells.
"""

import torch
from torch import nn

from torch_ref.nanodet import configs
from torch_ref.seed import Config, config_of
from torch_ref.torchvision import BasicBlock, DownBlock, conv_bn_relu

__all__ = ["ShuffleNetV2", "Stem", "configs"]

EPSILON = 1e-3


class Stem(nn.Module):
    """3x3 convolution of stride 2, BN, ReLU and a max-pool: [N, 3, H, W] -> [N, C, ceil(H / 4), ceil(W / 4)]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_bn_relu(3, channels, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maxpool(self.conv(x))


class ShuffleNetV2(nn.Module):
    """The detectors' backbone: [N, 3, H, W] -> [N, C], the last feature map averaged over the image.

    A detector reads ``stages``. A classifier, which theirs have not, makes class scores of the average.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0; theirs are 1.0.
        num_classes: width of a classifier; None leaves it out.
        config: other widths and block counts than those of ``configs[net_size]``; the last width is 0.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given; the last width is not 0.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = None,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 32,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        *stage_channels, last_channels = config["out_channels"]
        if last_channels:
            raise ValueError(f"the net ends after its last stage, so the last width must be 0, not {last_channels}")
        parts: list[nn.Module] = [Stem(stem_channels)]
        in_channels = stem_channels
        for out_channels, num_blocks in zip(stage_channels, config["num_blocks"], strict=True):
            parts.append(DownBlock(in_channels, out_channels))
            parts.append(nn.Sequential(*(BasicBlock(out_channels, split_ratio) for _ in range(num_blocks))))
            in_channels = out_channels
        self.model = nn.Sequential(*parts)
        self.classifier = None if num_classes is None else nn.Linear(in_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = EPSILON

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each stage returns, [N, C_i, ceil(H / 2^(i + 3)), ceil(W / 2^(i + 3))] for i from 0 to 2."""
        maps = []
        for number, part in enumerate(self.model):
            x = part(x)
            if number and number % 2 == 0:
                maps.append(x)
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.stages(x)[-1].mean((2, 3))
        return out if self.classifier is None else self.classifier(out)
