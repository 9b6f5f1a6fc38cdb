"""ShuffleNetV2 under the key names of torchvision (pytorch/vision, torchvision/models/shufflenetv2.py).

Other layouts have the same pieces in other places and take them from here: the paper's widths and the
convolutions of the two branches.
"""

import torch
from torch import nn

from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of

configs: dict[float, Config] = {
    0.5: {"out_channels": (48, 96, 192, 1024), "num_blocks": (3, 7, 3)},
    1.0: {"out_channels": (116, 232, 464, 1024), "num_blocks": (3, 7, 3)},
    1.5: {"out_channels": (176, 352, 704, 1024), "num_blocks": (3, 7, 3)},
    2.0: {"out_channels": (244, 488, 976, 2048), "num_blocks": (3, 7, 3)},
}


def activation(negative_slope: float) -> nn.Module:
    """A ReLU, or, with a slope, a LeakyReLU."""
    return nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, negative_slope: float = 0.0
) -> nn.Sequential:
    """[N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)]. Indices: 0 convolution, 1 BN."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        activation(negative_slope),
    )


def _depthwise(channels: int, kernel_size: int, stride: int, *, bias: bool) -> nn.Conv2d:
    padding = kernel_size // 2
    return nn.Conv2d(channels, channels, kernel_size, stride=stride, padding=padding, groups=channels, bias=bias)


def left_branch(
    in_channels: int, out_channels: int, *, kernel_size: int = 3, bias: bool = False, negative_slope: float = 0.0
) -> nn.Sequential:
    """Depthwise - 1x1: [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)].

    Indices: 0 depthwise, 1 BN, 2 pointwise, 3 BN.
    """
    return nn.Sequential(
        _depthwise(in_channels, kernel_size, 2, bias=bias),
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, out_channels, 1, bias=bias),
        nn.BatchNorm2d(out_channels),
        activation(negative_slope),
    )


def right_branch(
    in_channels: int,
    mid_channels: int,
    out_channels: int,
    *,
    stride: int,
    kernel_size: int = 3,
    bias: bool = False,
    negative_slope: float = 0.0,
) -> nn.Sequential:
    """1x1 - depthwise - 1x1: [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)].

    Indices: 0 pointwise, 1 BN, 3 depthwise, 4 BN, 5 pointwise, 6 BN.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, mid_channels, 1, bias=bias),
        nn.BatchNorm2d(mid_channels),
        activation(negative_slope),
        _depthwise(mid_channels, kernel_size, stride, bias=bias),
        nn.BatchNorm2d(mid_channels),
        nn.Conv2d(mid_channels, out_channels, 1, bias=bias),
        nn.BatchNorm2d(out_channels),
        activation(negative_slope),
    )


class BasicBlock(nn.Module):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(
        self, in_channels: int, split_ratio: float = 0.5, negative_slope: float = 0.0, kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.split = SplitBlock(split_ratio)
        width = in_channels - int(in_channels * split_ratio)
        self.branch2 = right_branch(
            width, width, width, stride=1, kernel_size=kernel_size, negative_slope=negative_slope
        )
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.branch2(x2)], 1))


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int, negative_slope: float = 0.0, kernel_size: int = 3) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        self.branch1 = left_branch(in_channels, mid_channels, kernel_size=kernel_size, negative_slope=negative_slope)
        self.branch2 = right_branch(
            in_channels, mid_channels, mid_channels, stride=2, kernel_size=kernel_size, negative_slope=negative_slope
        )
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(torch.cat([self.branch1(x), self.branch2(x)], 1))


def stage(
    in_channels: int,
    out_channels: int,
    num_blocks: int,
    split_ratio: float,
    negative_slope: float = 0.0,
    *,
    down_kernel: int = 3,
    basic_kernel: int = 3,
) -> nn.Sequential:
    """A down block and its basic blocks: [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""
    blocks = [BasicBlock(out_channels, split_ratio, negative_slope, basic_kernel) for _ in range(num_blocks)]
    return nn.Sequential(DownBlock(in_channels, out_channels, negative_slope, down_kernel), *blocks)


class ShuffleNetV2(nn.Module):
    """torchvision's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.
        stem_stride: stride of the stem's convolution. No tensor of a checkpoint tells it.
        stem_pool: whether the stem ends in a 3x3 max pooling of stride 2. No tensor tells it either.

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
        stem_stride: int = 2,
        stem_pool: bool = True,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        c1, c2, c3, last_channels = config["out_channels"]
        n1, n2, n3 = config["num_blocks"]

        self.conv1 = conv_bn_relu(3, stem_channels, 3, stride=stem_stride)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem_pool else None
        self.stage2 = stage(stem_channels, c1, n1, split_ratio)
        self.stage3 = stage(c1, c2, n2, split_ratio)
        self.stage4 = stage(c2, c3, n3, split_ratio)
        self.conv5 = conv_bn_relu(c3, last_channels, 1)
        self.fc = None if num_classes is None else nn.Linear(last_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(x)
        if self.maxpool is not None:
            out = self.maxpool(out)
        out = self.conv5(self.stage4(self.stage3(self.stage2(out))))
        out = out.mean((2, 3))
        return out if self.fc is None else self.fc(out)
