"""The ShuffleNetV2 backbone of the FastestDet and Yolo-FastestV2 detectors, under its key names
(dog-qiuqiu/FastestDet, module/shufflenetv2.py; dog-qiuqiu/Yolo-FastestV2, model/backbone/shufflenetv2.py).

The blocks of the paper's authors (``torch_ref.megvii``) in stages with names of their own; the net ends after its last
stage.
"""

import torch
from torch import nn

from torch_ref.megvii import BasicBlock, DownBlock, check_widths
from torch_ref.nanodet import configs
from torch_ref.seed import Config, config_of
from torch_ref.torchvision import conv_bn_relu

__all__ = ["ShuffleNetV2", "configs"]


class ShuffleNetV2(nn.Module):
    """The detectors' backbone: [N, 3, H, W] -> [N, C], the last feature map averaged over the image.

    A detector reads ``stages``. A classifier, which theirs have not, makes class scores of the average.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0; theirs are 0.5.
        num_classes: width of a classifier; None leaves it out.
        config: other widths and block counts than those of ``configs[net_size]``; the last width is 0.
        split_ratio: only 0.5, which is what even and odd channels make.
        stem_channels: width of the stem.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given; ``split_ratio`` is not 0.5; a
            stage's width is odd or not above that of its input, or the last width is not 0.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = None,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        *stage_channels, last_channels = config["out_channels"]
        check_widths(split_ratio, stem_channels, stage_channels)
        if last_channels:
            raise ValueError(f"the net ends after its last stage, so the last width must be 0, not {last_channels}")

        self.first_conv = conv_bn_relu(3, stem_channels, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = stem_channels
        stages = []
        for out_channels, num_blocks in zip(stage_channels, config["num_blocks"], strict=True):
            basics = (BasicBlock(out_channels) for _ in range(num_blocks))
            stages.append(nn.Sequential(DownBlock(in_channels, out_channels), *basics))
            in_channels = out_channels
        self.stage2, self.stage3, self.stage4 = stages
        self.classifier = None if num_classes is None else nn.Linear(in_channels, num_classes)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each stage returns, [N, C_i, ceil(H / 2^(i + 3)), ceil(W / 2^(i + 3))] for i from 0 to 2."""
        maps = [self.stage2(self.maxpool(self.first_conv(x)))]
        maps.append(self.stage3(maps[-1]))
        maps.append(self.stage4(maps[-1]))
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.stages(x)[-1].mean((2, 3))
        return out if self.classifier is None else self.classifier(out)
