"""ShuffleNetV2 under the key names of the package pytorchcv, its ``shufflenetv2b`` (osmr/imgclsmob,
pytorchcv/models/shufflenetv2b.py).

The left branch of a down block is as wide as its input, as in the paper authors' nets, but all blocks shuffle their
result. With ``shuffle_group_first=False`` they shuffle the other way round, which no tensor of a checkpoint tells.
"""

import torch
from torch import nn

from torch_ref.pytorchcv import ConvBN, InitBlock, average_pool_7x7, build_features, configs
from torch_ref.seed import Config, ShuffleBlock, SplitBlock, config_of

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "configs"]


class _Block(nn.Module):
    """The right branch, and the shuffle. A base class of both kinds of block."""

    def __init__(
        self, in_channels: int, mid_channels: int, out_channels: int, *, stride: int, shuffle_groups: int
    ) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, mid_channels, 1)
        self.dconv = ConvBN(mid_channels, mid_channels, 3, stride=stride, depthwise=True)
        self.conv2 = ConvBN(mid_channels, out_channels, 1)
        self.shuffle = ShuffleBlock(shuffle_groups)

    def right(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.dconv(self.conv1(x)))


class BasicBlock(_Block):
    """Stride 1: the first part passes, the rest goes through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int, split_ratio: float = 0.5, shuffle_groups: int = 2) -> None:
        width = in_channels - int(in_channels * split_ratio)
        super().__init__(width, width, width, stride=1, shuffle_groups=shuffle_groups)
        self.split = SplitBlock(split_ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1, x2 = self.split(x)
        return self.shuffle(torch.cat([x1, self.right(x2)], 1))


class DownBlock(_Block):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int, shuffle_groups: int = 2) -> None:
        right = out_channels - in_channels
        super().__init__(in_channels, out_channels // 2, right, stride=2, shuffle_groups=shuffle_groups)
        self.shortcut_dconv = ConvBN(in_channels, in_channels, 3, stride=2, depthwise=True)
        self.shortcut_conv = ConvBN(in_channels, in_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.shortcut_conv(self.shortcut_dconv(x))
        return self.shuffle(torch.cat([left, self.right(x)], 1))


class ShuffleNetV2(nn.Module):
    """pytorchcv's other net: [N, 3, 224, 224] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0 (its wd2, w1, w3d2 and w2).
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.
        shuffle: "after", or "reverse" for ``shuffle_group_first=False``.

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
        shuffle: str = "after",
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)

        def groups(channels: int) -> int:
            # To interleave half of the channels with the other half is the reverse of interleaving pairs.
            return 2 if shuffle == "after" else channels // 2

        self.features = build_features(
            InitBlock(stem_channels, ceil=False),
            stem_channels,
            config,
            lambda before, channels: DownBlock(before, channels, groups(channels)),
            lambda channels: BasicBlock(channels, split_ratio, groups(channels)),
        )
        self.output = None if num_classes is None else nn.Linear(config["out_channels"][-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = average_pool_7x7(self.features(x))
        return out if self.output is None else self.output(out)
