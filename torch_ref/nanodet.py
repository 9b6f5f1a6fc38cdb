"""The ShuffleNetV2 backbone of the NanoDet and NanoDet-Plus detectors, under its key names
(RangiLyu/nanodet, nanodet/model/backbone/shufflenetv2.py).

torchvision's names and graph, but the net ends after its last stage, and its activation is an option: the published
detectors have LeakyReLUs of slope 0.1. No tensor of a checkpoint tells the activation. With ``with_last_conv`` a last
convolution is part of the last stage.
"""

import torch
from torch import nn

from torch_ref.seed import Config, config_of
from torch_ref.torchvision import configs as torchvision_configs
from torch_ref.torchvision import conv_bn_relu, stage

__all__ = ["ShuffleNetV2", "configs"]

configs: dict[float, Config] = {
    size: {"out_channels": (*config["out_channels"][:-1], 0), "num_blocks": config["num_blocks"]}
    for size, config in torchvision_configs.items()
}
"""The last width is 0: no last convolution."""


class ShuffleNetV2(nn.Module):
    """NanoDet's backbone: [N, 3, H, W] -> [N, C], the last feature map averaged over the image.

    A detector reads ``stages``. A classifier, which NanoDet has not, makes class scores of the average.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of a classifier; None leaves it out.
        config: other widths and block counts than those of ``configs[net_size]``; a last width above 0 is that of a
            last convolution (NanoDet's ``with_last_conv``).
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.
        negative_slope: of the LeakyReLUs; 0 makes them ReLUs.
        stem_stride: stride of the stem's convolution, 2 in NanoDet's own nets.
        stem_pool: whether a max-pool follows, as in NanoDet's own nets.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = None,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
        negative_slope: float = 0.1,
        stem_stride: int = 2,
        stem_pool: bool = True,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        c1, c2, c3, last_channels = config["out_channels"]
        n1, n2, n3 = config["num_blocks"]

        self.conv1 = conv_bn_relu(3, stem_channels, 3, stride=stem_stride, negative_slope=negative_slope)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else None
        self.stage2 = stage(stem_channels, c1, n1, split_ratio, negative_slope)
        self.stage3 = stage(c1, c2, n2, split_ratio, negative_slope)
        self.stage4 = stage(c2, c3, n3, split_ratio, negative_slope)
        if last_channels:
            self.stage4.add_module("conv5", conv_bn_relu(c3, last_channels, 1, negative_slope=negative_slope))
        self.fc = None if num_classes is None else nn.Linear(last_channels or c3, num_classes)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each stage returns, [N, C_i, ceil(H / 2^(i + 3)), ceil(W / 2^(i + 3))] for i from 0 to 2 with NanoDet's
        own stem."""
        x = self.conv1(x)
        maps = [self.stage2(x if self.maxpool is None else self.maxpool(x))]
        maps.append(self.stage3(maps[-1]))
        maps.append(self.stage4(maps[-1]))
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.stages(x)[-1].mean((2, 3))
        return out if self.fc is None else self.fc(out)
