"""Every checkpoint layout as a table: how to know it, and what it calls each part of the net.

A part is a convolution with its batch normalisation. The same table is read in both directions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

import torch_ref.chenyaofo
import torch_ref.ericsun99
import torch_ref.kuangliu
import torch_ref.megvii
import torch_ref.mmpretrain
import torch_ref.seed
import torch_ref.torchvision
import torch_ref.weiaicunzai
from flax_shufflenet import Architecture

Unit = tuple[str, str]
"""Names of a convolution and of its batch normalisation, within a block."""


class Part(NamedTuple):
    """One convolution with its batch normalisation, under its Flax name and its PyTorch names."""

    flax: str
    conv: str
    bn: str


@dataclass(frozen=True)
class Layout:
    """One checkpoint layout. Its name is also the family of ``flax_shufflenet.preset`` that it computes."""

    name: str
    repository: str
    fingerprint: str
    """A key that checkpoints of this layout have and others do not, after any prefix."""
    reference: Callable[..., nn.Module]
    """The net in PyTorch, under this layout's key names."""
    stem: Unit
    block: str
    """Name of block ``{block}`` of stage ``{stage}``, or of the ``{index}``-th block of all."""
    left: tuple[Unit, ...]
    right: tuple[Unit, ...]
    branch: tuple[Unit, ...]
    last: Unit | None
    """None where the layout's nets end after their last stage."""
    head: str
    first_stage: int = 1
    root: str = ""
    """What stands before the names of all parts, but not before the head's."""
    may_end_early: bool = False
    """Nets of this layout may end after their last stage."""

    def block_name(self, stage: int, block: int, index: int) -> str:
        """PyTorch's name for a block; all numbers count from 0."""
        return self.root + self.block.format(stage=stage + self.first_stage, block=block, index=index)

    def parts(self, stage_blocks: tuple[int, ...], *, with_last: bool) -> Iterator[Part]:
        """Every part of a net with so many basic blocks in its stages, from the images to the features.

        ``with_last``: the last convolution is one of them.
        """
        yield Part("stem", self.root + self.stem[0], self.root + self.stem[1])
        index = 0
        for stage, blocks in enumerate(stage_blocks):
            for block in range(blocks + 1):
                branches = {"branch": self.branch} if block else {"left": self.left, "right": self.right}
                name = self.block_name(stage, block, index)
                for branch, units in branches.items():
                    for number, (conv, bn) in enumerate(units):
                        yield Part(f"stages.{stage}.{block}.{branch}.{number}", f"{name}.{conv}", f"{name}.{bn}")
                index += 1
        if with_last:
            assert self.last is not None
            yield Part("last", self.root + self.last[0], self.root + self.last[1])

    def parts_of(self, architecture: Architecture) -> Iterator[Part]:
        """Every part of a net of this architecture."""
        return self.parts(architecture.stage_blocks, with_last=bool(architecture.last_width))

    def build_reference(self, architecture: Architecture) -> nn.Module:
        """The PyTorch net of this layout with an architecture's widths, depths and head, freshly initialised."""
        net = self.reference(
            num_classes=architecture.num_classes or None,
            config={
                "out_channels": (*architecture.stage_widths, architecture.last_width),
                "num_blocks": architecture.stage_blocks,
            },
            split_ratio=architecture.split_ratio,
            stem_channels=architecture.stem_width,
        )
        if architecture.num_classes:
            head = nn.Linear(architecture.features_width, architecture.num_classes, bias=architecture.head_bias)
            net.set_submodule(self.head, head)
        return net


def _numbered(prefix: str, *pairs: tuple[int, int]) -> tuple[Unit, ...]:
    return tuple((f"{prefix}.{conv}", f"{prefix}.{bn}") for conv, bn in pairs)


def _named(*numbers: int) -> tuple[Unit, ...]:
    return tuple((f"conv{number}", f"bn{number}") for number in numbers)


# Positions in a Sequential of (1x1 conv, BN, ReLU, 3x3 conv, BN, 1x1 conv, BN, ReLU), and of
# (3x3 conv, BN, 1x1 conv, BN, ReLU).
_RIGHT = ((0, 1), (3, 4), (5, 6))
_LEFT = ((0, 1), (2, 3))

_TORCHVISION_NAMES: dict[str, Any] = {
    "fingerprint": "stage2.0.branch1.0.weight",
    "stem": ("conv1.0", "conv1.1"),
    "block": "stage{stage}.{block}",
    "first_stage": 2,
    "left": _numbered("branch1", *_LEFT),
    "right": _numbered("branch2", *_RIGHT),
    "branch": _numbered("branch2", *_RIGHT),
    "last": ("conv5.0", "conv5.1"),
    "head": "fc",
}

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="seed",
            repository="this project's torch_ref",
            fingerprint="layer1.0.branch1.0.weight",
            reference=torch_ref.seed.ShuffleNetV2,
            stem=("conv1", "bn1"),
            block="layer{stage}.{block}",
            left=_numbered("branch1", (0, 1), (2, 3)),
            right=_numbered("branch2", (0, 1), (2, 3), (4, 5)),
            branch=_named(1, 2, 3),
            last=("conv2", "bn2"),
            head="classifier",
        ),
        Layout(
            name="kuangliu",
            repository="kuangliu/pytorch-cifar",
            fingerprint="layer1.0.conv5.weight",
            reference=torch_ref.kuangliu.ShuffleNetV2,
            stem=("conv1", "bn1"),
            block="layer{stage}.{block}",
            left=_named(1, 2),
            right=_named(3, 4, 5),
            branch=_named(1, 2, 3),
            last=("conv2", "bn2"),
            head="linear",
        ),
        Layout(
            name="chenyaofo",
            repository="chenyaofo/pytorch-cifar-models",
            reference=torch_ref.chenyaofo.ShuffleNetV2,
            **_TORCHVISION_NAMES,
        ),
        Layout(
            name="torchvision",
            repository="pytorch/vision",
            reference=torch_ref.torchvision.ShuffleNetV2,
            **_TORCHVISION_NAMES,
        ),
        Layout(
            name="weiaicunzai",
            repository="weiaicunzai/pytorch-cifar100",
            fingerprint="stage2.0.shortcut.0.weight",
            reference=torch_ref.weiaicunzai.ShuffleNetV2,
            stem=("pre.0", "pre.1"),
            block="stage{stage}.{block}",
            first_stage=2,
            left=_numbered("shortcut", *_LEFT),
            right=_numbered("residual", *_RIGHT),
            branch=_numbered("residual", *_RIGHT),
            last=("conv5.0", "conv5.1"),
            head="fc",
        ),
        Layout(
            name="megvii",
            repository="megvii-model/ShuffleNet-Series",
            fingerprint="features.0.branch_proj.0.weight",
            reference=torch_ref.megvii.ShuffleNetV2,
            stem=("first_conv.0", "first_conv.1"),
            block="features.{index}",
            left=_numbered("branch_proj", *_LEFT),
            right=_numbered("branch_main", *_RIGHT),
            branch=_numbered("branch_main", *_RIGHT),
            last=("conv_last.0", "conv_last.1"),
            head="classifier.0",
        ),
        Layout(
            name="ericsun99",
            repository="ericsun99/Shufflenet-v2-Pytorch",
            fingerprint="features.0.banch1.0.weight",
            reference=torch_ref.ericsun99.ShuffleNetV2,
            stem=("conv1.0", "conv1.1"),
            block="features.{index}",
            left=_numbered("banch1", *_LEFT),
            right=_numbered("banch2", *_RIGHT),
            branch=_numbered("banch2", *_RIGHT),
            last=("conv_last.0", "conv_last.1"),
            head="classifier.0",
        ),
        Layout(
            name="mmpretrain",
            repository="open-mmlab/mmpretrain",
            fingerprint="layers.0.0.branch1.0.conv.weight",
            reference=torch_ref.mmpretrain.ShuffleNetV2,
            root="backbone.",
            stem=("conv1.conv", "conv1.bn"),
            block="layers.{stage}.{block}",
            first_stage=0,
            left=(("branch1.0.conv", "branch1.0.bn"), ("branch1.1.conv", "branch1.1.bn")),
            right=tuple((f"branch2.{i}.conv", f"branch2.{i}.bn") for i in range(3)),
            branch=tuple((f"branch2.{i}.conv", f"branch2.{i}.bn") for i in range(3)),
            last=("layers.3.conv", "layers.3.bn"),
            head="head.fc",
        ),
    )
}
