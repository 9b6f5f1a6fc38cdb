"""ShuffleNetV2 "K", the backbone of OpenPifPaf's pose nets, under its key names (openpifpaf/openpifpaf,
network/basenetworks.py).

torchvision's blocks with larger depthwise kernels behind a stem of stride 2 without a max-pool. OpenPifPaf sets what
batch normalisations add to the variance to 1e-4 in all its nets, which no tensor of a checkpoint tells.
"""

import torch
from torch import nn

from torch_ref.seed import Config, config_of
from torch_ref.torchvision import configs, conv_bn_relu, stage

__all__ = ["ShuffleNetV2", "configs"]

EPSILON = 1e-4


class ShuffleNetV2(nn.Module):
    """OpenPifPaf's backbone: [N, 3, H, W] -> [N, C], the last feature map averaged over the image.

    A pose net reads the map. A classifier, which OpenPifPaf has not, makes class scores of the average.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of a classifier; None leaves it out.
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.
        down_kernel: side of the down blocks' depthwise kernels.
        basic_kernel: side of the basic blocks' depthwise kernels.

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
        down_kernel: int = 5,
        basic_kernel: int = 5,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        c1, c2, c3, last_channels = config["out_channels"]
        n1, n2, n3 = config["num_blocks"]
        kernels = {"down_kernel": down_kernel, "basic_kernel": basic_kernel}
        self.input_block = nn.Sequential(conv_bn_relu(3, stem_channels, 3, stride=2))
        self.stage2 = stage(stem_channels, c1, n1, split_ratio, **kernels)
        self.stage3 = stage(c1, c2, n2, split_ratio, **kernels)
        self.stage4 = stage(c2, c3, n3, split_ratio, **kernels)
        self.conv5 = conv_bn_relu(c3, last_channels, 1)
        self.fc = None if num_classes is None else nn.Linear(last_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = EPSILON

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv5(self.stage4(self.stage3(self.stage2(self.input_block(x))))).mean((2, 3))
        return out if self.fc is None else self.fc(out)
