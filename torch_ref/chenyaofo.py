"""ShuffleNetV2 as in chenyaofo/pytorch-cifar-models: torchvision's net and key names, with a stem for CIFAR.

The stem's stride and pooling are not in the weights: a checkpoint of one layout loads into the other without
an error, and its scores are then wrong.
"""

from torch_ref import torchvision
from torch_ref.seed import Config
from torch_ref.torchvision import configs

__all__ = ["ShuffleNetV2", "configs"]


class ShuffleNetV2(torchvision.ShuffleNetV2):
    """chenyaofo's net: [N, 3, H, W] -> [N, num_classes], class scores before the softmax.

    The stem has stride 1 and no pooling, so 32x32 images keep a 4x4 map to the end.

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
        num_classes: int | None = 10,
        *,
        config: Config | None = None,
        split_ratio: float = 0.5,
        stem_channels: int = 24,
    ) -> None:
        super().__init__(
            net_size,
            num_classes,
            config=config,
            split_ratio=split_ratio,
            stem_channels=stem_channels,
            stem_stride=1,
            stem_pool=False,
        )
