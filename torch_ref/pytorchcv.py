"""ShuffleNetV2 under the key names of the package pytorchcv, its ``shufflenetv2`` (osmr/imgclsmob,
pytorchcv/models/shufflenetv2.py).

torchvision's graph, but the stem's max-pool starts at the first pixel and its last window may be cut off, and the last
pooling is of fixed size. Its widths at 1.5 and 2.0 scale the last convolution too.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import nn

from torch_ref import torchvision
from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of

__all__ = [
    "BasicBlock",
    "ConvBN",
    "DownBlock",
    "InitBlock",
    "ShuffleNetV2",
    "average_pool_7x7",
    "build_features",
    "configs",
]

_LAST_CHANNELS = {0.5: 1024, 1.0: 1024, 1.5: 1553, 2.0: 2153}
configs: dict[float, Config] = {
    size: {"out_channels": (*config["out_channels"][:-1], _LAST_CHANNELS[size]), "num_blocks": config["num_blocks"]}
    for size, config in torchvision.configs.items()
}


def average_pool_7x7(x: torch.Tensor) -> torch.Tensor:
    """[N, C, 7, 7] -> [N, C]. Of stride 1: a larger map leaves more than one value, which no head takes.

    Raises:
        ValueError: the map is not 7x7.
    """
    if x.shape[2:] != (7, 7):
        raise ValueError(f"the last map is {x.shape[2]}x{x.shape[3]} and must be 7x7, so use images of 224x224")
    return x.mean((2, 3))


class ConvBN(nn.Module):
    """Convolution, BN and, unless it is depthwise, ReLU.

    [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, depthwise: bool = False
    ) -> None:
        super().__init__()
        groups = in_channels if depthwise else 1
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.depthwise = depthwise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn(self.conv(x))
        return out if self.depthwise else F.relu(out)


class InitBlock(nn.Module):
    """3x3 convolution of stride 2, BN, ReLU and a max-pool; ``ceil``: without padding, its last window cut off.

    [N, 3, H, W] -> [N, C, ceil(H / 4), ceil(W / 4)], or with ``ceil`` what ``ceil_mode`` leaves of ceil(H / 2).
    """

    def __init__(self, channels: int, *, ceil: bool) -> None:
        super().__init__()
        self.conv = ConvBN(3, channels, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=0 if ceil else 1, ceil_mode=ceil)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.conv(x))


class _Right(nn.Module):
    """The right branch, whose convolutions stand in the block itself. A base class of both kinds of block."""

    def __init__(self, in_channels: int, mid_channels: int, stride: int) -> None:
        super().__init__()
        self.compress_conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.compress_bn1 = nn.BatchNorm2d(mid_channels)
        self.dw_conv2 = nn.Conv2d(
            mid_channels, mid_channels, 3, stride=stride, padding=1, groups=mid_channels, bias=False
        )
        self.dw_bn2 = nn.BatchNorm2d(mid_channels)
        self.expand_conv3 = nn.Conv2d(mid_channels, mid_channels, 1, bias=False)
        self.expand_bn3 = nn.BatchNorm2d(mid_channels)

    def right(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.compress_bn1(self.compress_conv1(x)))
        out = self.dw_bn2(self.dw_conv2(out))
        return F.relu(self.expand_bn3(self.expand_conv3(out)))


class BasicBlock(_Right):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, split_ratio: float = 0.5) -> None:
        width = in_channels - int(in_channels * split_ratio)
        super().__init__(width, width, stride=1)
        self.split = SplitBlock(split_ratio)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.right(x2)], 1))


class DownBlock(_Right):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        mid_channels = out_channels // 2
        super().__init__(in_channels, mid_channels, stride=2)
        self.dw_conv4 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.dw_bn4 = nn.BatchNorm2d(in_channels)
        self.expand_conv5 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.expand_bn5 = nn.BatchNorm2d(mid_channels)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = F.relu(self.expand_bn5(self.expand_conv5(self.dw_bn4(self.dw_conv4(x)))))
        return self.shuffle(torch.cat([left, self.right(x)], 1))


def build_features(
    init_block: nn.Module,
    stem_channels: int,
    config: Config,
    down_block: Callable[[int, int], nn.Module],
    basic_block: Callable[[int], nn.Module],
) -> nn.Sequential:
    """What stands before the pooling, under pytorchcv's names: [N, 3, H, W] -> [N, last, H', W'].

    ``down_block`` makes a stage's first unit of the channels before and in the stage, ``basic_block`` the others.
    """
    *stage_channels, last_channels = config["out_channels"]
    features = nn.Sequential()
    features.add_module("init_block", init_block)
    in_channels = stem_channels
    for number, (out_channels, blocks) in enumerate(zip(stage_channels, config["num_blocks"], strict=True), 1):
        stage = nn.Sequential()
        stage.add_module("unit1", down_block(in_channels, out_channels))
        for unit in range(2, blocks + 2):
            stage.add_module(f"unit{unit}", basic_block(out_channels))
        features.add_module(f"stage{number}", stage)
        in_channels = out_channels
    features.add_module("final_block", ConvBN(in_channels, last_channels, 1))
    return features


class ShuffleNetV2(nn.Module):
    """pytorchcv's net: [N, 3, 224, 224] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0 (its wd2, w1, w3d2 and w2).
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given; in ``forward``, the images do not
            leave a 7x7 map.
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
        self.features = build_features(
            InitBlock(stem_channels, ceil=True),
            stem_channels,
            config,
            DownBlock,
            lambda channels: BasicBlock(channels, split_ratio),
        )
        self.output = None if num_classes is None else nn.Linear(config["out_channels"][-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = average_pool_7x7(self.features(x))
        return out if self.output is None else self.output(out)
