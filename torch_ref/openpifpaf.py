"""ShuffleNetV2 "K", the backbone of OpenPifPaf's pose nets, under its key names (openpifpaf/openpifpaf,
network/basenetworks.py).

torchvision's blocks with larger depthwise kernels behind a stem of stride 2 without a max-pool. OpenPifPaf sets what
batch normalisations add to the variance to 1e-4 in all its nets, which no tensor of a checkpoint tells.
"""

import torch
from torch import nn

from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of
from torch_ref.torchvision import configs, conv_bn_relu, left_branch, right_branch

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "configs"]

EPSILON = 1e-4


class BasicBlock(nn.Module):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, kernel_size: int, split_ratio: float = 0.5) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.branch2 = right_branch(width, width, width, stride=1, kernel_size=kernel_size)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.branch2(x2)], 1))


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch1 = left_branch(in_channels, half, kernel_size=kernel_size)
        self.branch2 = right_branch(in_channels, half, half, stride=2, kernel_size=kernel_size)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1))


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

        def stage(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
            blocks = [BasicBlock(out_channels, basic_kernel, split_ratio) for _ in range(num_blocks)]
            return nn.Sequential(DownBlock(in_channels, out_channels, down_kernel), *blocks)

        n1, n2, n3 = config["num_blocks"]
        self.input_block = nn.Sequential(conv_bn_relu(3, stem_channels, 3, stride=2))
        self.stage2 = stage(stem_channels, c1, n1)
        self.stage3 = stage(c1, c2, n2)
        self.stage4 = stage(c2, c3, n3)
        self.conv5 = conv_bn_relu(c3, last_channels, 1)
        self.fc = None if num_classes is None else nn.Linear(last_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = EPSILON

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv5(self.stage4(self.stage3(self.stage2(self.input_block(x))))).mean((2, 3))
        return out if self.fc is None else self.fc(out)
