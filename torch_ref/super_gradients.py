"""ShuffleNetV2 under the key names of the package super-gradients (Deci-AI/super-gradients, shufflenetv2.py).

torchvision's net and names, but the stages are layers.
"""

import torch
from torch import nn

from torch_ref.seed import Config, config_of
from torch_ref.torchvision import configs, conv_bn_relu, stage

__all__ = ["ShuffleNetV2", "configs"]


class ShuffleNetV2(nn.Module):
    """The package's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

    Args:
        net_size: 0.5, 1.0, 1.5 or 2.0.
        num_classes: width of the head; None leaves it out, and the net returns its features, [N, last].
        config: other widths and block counts than those of ``configs[net_size]``.
        split_ratio: what share of the channels basic blocks pass on untouched.
        stem_channels: width of the stem.

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
    ) -> None:
        super().__init__()
        if config is None:
            config = config_of(net_size, configs)
        c1, c2, c3, last_channels = config["out_channels"]
        n1, n2, n3 = config["num_blocks"]

        self.conv1 = conv_bn_relu(3, stem_channels, 3, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer2 = stage(stem_channels, c1, n1, split_ratio)
        self.layer3 = stage(c1, c2, n2, split_ratio)
        self.layer4 = stage(c2, c3, n3, split_ratio)
        self.conv5 = conv_bn_relu(c3, last_channels, 1)
        self.fc = None if num_classes is None else nn.Linear(last_channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.maxpool(self.conv1(x))
        out = self.conv5(self.layer4(self.layer3(self.layer2(out)))).mean((2, 3))
        return out if self.fc is None else self.fc(out)
