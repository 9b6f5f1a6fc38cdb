"""ShuffleNetV2 under the key names of kuangliu/pytorch-cifar (models/shufflenetv2.py).

The seed's relative: the same widths, stem and basic blocks, and tensors of the same shapes in the same order,
but its down blocks have ReLUs, so the seed computes something else with the same weights.
"""

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import nn

from torch_ref.seed import BasicBlock, Config, ShuffleBlock, config_of, configs

__all__ = ["BasicBlock", "DownBlock", "ShuffleNetV2", "average_pool_to_1x1", "configs"]


def average_pool_to_1x1(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Average pooling of a fixed size that has to take in the whole map: [N, C, H, W] -> [N, C].

    Raises:
        ValueError: it would leave another map than 1x1.
    """
    h, w = x.shape[2:]
    pooled_h, pooled_w = h // kernel_size, w // kernel_size
    if (pooled_h, pooled_w) != (1, 1):
        raise ValueError(
            f"the last map is {h}x{w}, which average pooling over {kernel_size}x{kernel_size} makes "
            f"{pooled_h}x{pooled_w}; it must be 1x1, so use images of the size this layout is made for"
        )
    return F.avg_pool2d(x, kernel_size).flatten(1)


class DownBlock(nn.Module):
    """Stride 2: both branches see all channels. [N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        # Left: 3x3 depthwise - 1x1.
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_channels)
        # Right: 1x1 - 3x3 depthwise - 1x1.
        self.conv3 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(mid_channels)
        self.conv4 = nn.Conv2d(mid_channels, mid_channels, 3, stride=2, padding=1, groups=mid_channels, bias=False)
        self.bn4 = nn.BatchNorm2d(mid_channels)
        self.conv5 = nn.Conv2d(mid_channels, mid_channels, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(mid_channels)
        self.shuffle = ShuffleBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return self.shuffle(torch.cat([left, right], 1))


def _layer(in_channels: int, out_channels: int, num_blocks: int, split_ratio: float) -> nn.Sequential:
    blocks = [BasicBlock(out_channels, split_ratio) for _ in range(num_blocks)]
    return nn.Sequential(DownBlock(in_channels, out_channels), *blocks)


class ShuffleNetV2(nn.Module):
    """kuangliu's net: [N, 3, 32, 32] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.
        stem_kernel: side of the stem's kernel; 1 in the copies for knowledge distillation (HobbitLong/RepDistiller).

    Raises:
        ValueError: ``net_size`` is none of the four and no ``config`` is given; in ``forward``, the images do
            not leave a 1x1 map after the 4x4 pooling.
    """

    def __init__(
        self,
        net_size: float = 1.0,
        num_classes: int | None = 10,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
        stem_kernel: int = 3,
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        c1, c2, c3, last_channels = config["out_channels"]
        n1, n2, n3 = config["num_blocks"]

        self.conv1 = nn.Conv2d(3, stem_channels, stem_kernel, stride=1, padding=stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.layer1 = _layer(stem_channels, c1, n1, split_ratio)
        self.layer2 = _layer(c1, c2, n2, split_ratio)
        self.layer3 = _layer(c2, c3, n3, split_ratio)
        self.conv2 = nn.Conv2d(c3, last_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last_channels)
        self.linear = None if num_classes is None else nn.Linear(last_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = average_pool_to_1x1(out, 4)
        return out if self.linear is None else self.linear(out)
