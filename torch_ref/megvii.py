"""ShuffleNetV2 under the key names of its authors (megvii-model/ShuffleNet-Series, ShuffleNetV2/network.py).

Split and shuffle are one step at the input of each basic block: even channels pass, odd ones go through the
branch. Nothing is shuffled after a block. Their images are BGR in 0-255, not normalised.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from torch_ref.kuangliu import average_pool_to_1x1
from torch_ref.seed import Config, config_of
from torch_ref.torchvision import configs, conv_bn_relu, left_branch, right_branch

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "configs"]


class BasicBlock(nn.Module):
    """Stride 1: even channels pass, odd ones go through the branch. [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        width = in_channels // 2
        self.branch_main = right_branch(width, width, width, stride=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, 0::2], self.branch_main(x[:, 1::2])], 1)


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)].

    The left branch is as wide as the input, and the right one makes what is then missing.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch_main = right_branch(in_channels, out_channels // 2, out_channels - in_channels, stride=2)
        self.branch_proj = left_branch(in_channels, in_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)


def check_widths(split_ratio: float, stem_channels: int, stage_channels: Sequence[int]) -> None:
    """What these blocks can be built with.

    Raises:
        ValueError: ``split_ratio`` is not 0.5; a stage's width is odd or not above that of its input.
    """
    if split_ratio != 0.5:
        raise ValueError(f"even channels pass and odd ones do not, so split_ratio must be 0.5, not {split_ratio}")
    for in_channels, out_channels in itertools.pairwise((stem_channels, *stage_channels)):
        if out_channels % 2 or out_channels <= in_channels:
            raise ValueError(f"a stage's width must be even and above its input's {in_channels}: {out_channels}")


class ShuffleNetV2(nn.Module):
    """The authors' net: [N, 3, 224, 224] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: only 0.5, which is what even and odd channels make.
        stem_channels: width of the stem.
        dropout: rate before the head. By default 0.2 at size 2.0 of ``configs``, and otherwise none.

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given; ``split_ratio`` is not 0.5; a
            stage's width is odd or not above that of its input; in ``forward``, the images do not leave a
            1x1 map after the 7x7 pooling.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = 1000,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if dropout is None:
            dropout = 0.2 if config is None and net_size == 2.0 else 0.0
        if config is None:
            config = config_of(net_size, configs)
        *stage_channels, last_channels = config["out_channels"]
        check_widths(split_ratio, stem_channels, stage_channels)

        self.first_conv = conv_bn_relu(3, stem_channels, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks: list[nn.Module] = []
        in_channels = stem_channels
        for out_channels, num_blocks in zip(stage_channels, config["num_blocks"], strict=True):
            blocks += [DownBlock(in_channels, out_channels), *(BasicBlock(out_channels) for _ in range(num_blocks))]
            in_channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.conv_last = conv_bn_relu(in_channels, last_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = (
            None if num_classes is None else nn.Sequential(nn.Linear(last_channels, num_classes, bias=False))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv_last(self.features(self.maxpool(self.first_conv(x))))
        out = average_pool_to_1x1(out, 7)
        return out if self.classifier is None else self.classifier(self.dropout(out))
