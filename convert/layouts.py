"""Every checkpoint layout as a table: how to know it, and what it calls each part of the net.

A part is a convolution with its batch normalisation. The same table is read in both directions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

import torch_ref.birder
import torch_ref.chenyaofo
import torch_ref.ericsun99
import torch_ref.fastestdet
import torch_ref.kuangliu
import torch_ref.megvii
import torch_ref.mmpretrain
import torch_ref.nanodet
import torch_ref.openpifpaf
import torch_ref.pytorchcv
import torch_ref.pytorchcv_b
import torch_ref.seed
import torch_ref.super_gradients
import torch_ref.torchvision
import torch_ref.weiaicunzai
import torch_ref.yolov5lite
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
    """A key that checkpoints of this layout have and others do not, after any prefix; of layouts with the same one,
    ``convert.contents.select`` chooses by what else is there."""
    reference: Callable[..., nn.Module]
    """The net in PyTorch, under this layout's key names."""
    stem: Unit
    block: str
    """Name of block ``{block}`` of stage ``{stage}``, or of the ``{index}``-th block of all; ``{unit}`` is one more
    than the block, ``{before}`` one less, and ``{odd}`` and ``{even}`` count stages by two."""
    left: tuple[Unit, ...]
    right: tuple[Unit, ...]
    branch: tuple[Unit, ...]
    last: Unit | None
    """None where the layout's nets end after their last stage."""
    head: str
    down: str = ""
    """Name of a stage's down block, where it is none of ``block``'s."""
    first_stage: int = 1
    root: str = ""
    """What stands before the names of all parts, but not before the head's."""
    may_end_early: bool = False
    """Nets of this layout may end after their last stage."""
    options: tuple[str, ...] = ()
    """Fields of the architecture that ``reference`` takes as well, under their own names."""

    @property
    def called(self) -> str:
        """Its name where no more than its tensors' names are known, which torchvision's and chenyaofo's share."""
        return "torchvision or chenyaofo" if self.name in ("torchvision", "chenyaofo") else self.name

    def block_name(self, stage: int, block: int, index: int) -> str:
        """PyTorch's name for a block; all numbers count from 0."""
        name = self.block if block else self.down or self.block
        numbers = {"block": block, "unit": block + 1, "before": block - 1, "index": index}
        return self.root + name.format(stage=stage + self.first_stage, odd=2 * stage + 1, even=2 * stage + 2, **numbers)

    def blocks(self, stage_blocks: tuple[int, ...]) -> Iterator[tuple[int, int, str]]:
        """(stage, block in the stage, PyTorch's name) of every block; block 0 is the stage's down block."""
        index = 0
        for stage, blocks in enumerate(stage_blocks):
            for block in range(blocks + 1):
                yield stage, block, self.block_name(stage, block, index)
                index += 1

    def parts(self, stage_blocks: tuple[int, ...], *, with_last: bool) -> Iterator[Part]:
        """Every part of a net with so many basic blocks in its stages, from the images to the features.

        ``with_last``: the last convolution is one of them.
        """
        yield Part("stem", self.root + self.stem[0], self.root + self.stem[1])
        for stage, block, name in self.blocks(stage_blocks):
            branches = {"branch": self.branch} if block else {"left": self.left, "right": self.right}
            for branch, units in branches.items():
                for number, (conv, bn) in enumerate(units):
                    yield Part(f"stages.{stage}.{block}.{branch}.{number}", f"{name}.{conv}", f"{name}.{bn}")
        if with_last:
            assert self.last is not None
            yield Part("last", self.root + self.last[0], self.root + self.last[1])

    def parts_of(self, architecture: Architecture) -> Iterator[Part]:
        """Every part of a net of this architecture."""
        return self.parts(architecture.stage_blocks, with_last=bool(architecture.last_width))

    def build_reference(self, architecture: Architecture) -> nn.Module:
        """The PyTorch net of this layout with an architecture's widths, depths, head, epsilon and ``options``, freshly
        initialised."""
        net = self.reference(
            num_classes=architecture.num_classes or None,
            config={
                "out_channels": (*architecture.stage_widths, architecture.last_width),
                "num_blocks": architecture.stage_blocks,
            },
            split_ratio=architecture.split_ratio,
            stem_channels=architecture.stem_width,
            **{option: getattr(architecture, option) for option in self.options},
        )
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = architecture.bn_epsilon
        if architecture.num_classes:
            head = nn.Linear(architecture.features_width, architecture.num_classes, bias=architecture.head_bias)
            net.set_submodule(self.head, head)
        return net

    def reference_to_fill(self, architecture: Architecture) -> nn.Module:
        """``build_reference`` for tensors to be loaded. The caller's random state is as it was afterwards.

        On the meta device nothing would be drawn, but PyTorch then imports its compiler, which takes a second.
        """
        with torch.random.fork_rng(devices=[]):
            return self.build_reference(architecture)


def _numbered(prefix: str, *pairs: tuple[int, int]) -> tuple[Unit, ...]:
    return tuple((f"{prefix}.{conv}", f"{prefix}.{bn}") for conv, bn in pairs)


def _named(*numbers: int) -> tuple[Unit, ...]:
    return tuple((f"conv{number}", f"bn{number}") for number in numbers)


def _pairs(*names: str) -> tuple[Unit, ...]:
    return tuple((f"{name}.conv", f"{name}.bn") for name in names)


# Positions in a Sequential of (1x1 conv, BN, ReLU, 3x3 conv, BN, 1x1 conv, BN, ReLU), and of
# (3x3 conv, BN, 1x1 conv, BN, ReLU).
_RIGHT = ((0, 1), (3, 4), (5, 6))
_LEFT = ((0, 1), (2, 3))

_TORCHVISION_NAMES: dict[str, Any] = {
    "fingerprint": "stage2.0.branch1.2.weight",  # birder has a branch1.0 too
    "stem": ("conv1.0", "conv1.1"),
    "block": "stage{stage}.{block}",
    "first_stage": 2,
    "left": _numbered("branch1", *_LEFT),
    "right": _numbered("branch2", *_RIGHT),
    "branch": _numbered("branch2", *_RIGHT),
    "last": ("conv5.0", "conv5.1"),
    "head": "fc",
}

_BIRDER_RIGHT = (("branch2.0.0", "branch2.0.1"), ("branch2.1", "branch2.2"), ("branch2.3.0", "branch2.3.1"))
_PYTORCHCV_RIGHT = (
    ("compress_conv1", "compress_bn1"),
    ("dw_conv2", "dw_bn2"),
    ("expand_conv3", "expand_bn3"),
)

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
            options=("stem_kernel",),
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
            options=("stem_stride", "stem_pool"),
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
            left=_pairs("branch1.0", "branch1.1"),
            right=_pairs("branch2.0", "branch2.1", "branch2.2"),
            branch=_pairs("branch2.0", "branch2.1", "branch2.2"),
            last=("layers.3.conv", "layers.3.bn"),
            head="head.fc",
        ),
        Layout(
            name="super_gradients",
            repository="Deci-AI/super-gradients",
            reference=torch_ref.super_gradients.ShuffleNetV2,
            # The seed has layers 1 to 3.
            **_TORCHVISION_NAMES | {"fingerprint": "layer4.0.branch1.2.weight", "block": "layer{stage}.{block}"},
        ),
        Layout(
            name="birder",
            repository="the package birder",
            fingerprint="body.stage2.0.branch1.2.0.weight",
            reference=torch_ref.birder.ShuffleNetV2,
            stem=("stem.0", "stem.1"),
            block="body.stage{stage}.{block}",
            first_stage=2,
            left=(("branch1.0", "branch1.1"), ("branch1.2.0", "branch1.2.1")),
            right=_BIRDER_RIGHT,
            branch=_BIRDER_RIGHT,
            last=("features.0.0", "features.0.1"),
            head="classifier",
        ),
        Layout(
            name="pytorchcv",
            repository="the package pytorchcv, shufflenetv2",
            fingerprint="features.stage1.unit1.dw_conv4.weight",
            reference=torch_ref.pytorchcv.ShuffleNetV2,
            stem=("features.init_block.conv.conv", "features.init_block.conv.bn"),
            block="features.stage{stage}.unit{unit}",
            left=(("dw_conv4", "dw_bn4"), ("expand_conv5", "expand_bn5")),
            right=_PYTORCHCV_RIGHT,
            branch=_PYTORCHCV_RIGHT,
            last=("features.final_block.conv", "features.final_block.bn"),
            head="output",
        ),
        Layout(
            name="pytorchcv_b",
            repository="the package pytorchcv, shufflenetv2b",
            fingerprint="features.stage1.unit1.shortcut_dconv.conv.weight",
            reference=torch_ref.pytorchcv_b.ShuffleNetV2,
            stem=("features.init_block.conv.conv", "features.init_block.conv.bn"),
            block="features.stage{stage}.unit{unit}",
            left=_pairs("shortcut_dconv", "shortcut_conv"),
            right=_pairs("conv1", "dconv", "conv2"),
            branch=_pairs("conv1", "dconv", "conv2"),
            last=("features.final_block.conv", "features.final_block.bn"),
            head="output",
            options=("shuffle",),
        ),
        Layout(
            name="nanodet",
            repository="RangiLyu/nanodet",
            reference=torch_ref.nanodet.ShuffleNetV2,
            may_end_early=True,
            options=("negative_slope", "stem_stride", "stem_pool"),
            **_TORCHVISION_NAMES | {"last": ("stage4.conv5.0", "stage4.conv5.1")},
        ),
        Layout(
            name="fastestdet",
            repository="dog-qiuqiu/FastestDet and Yolo-FastestV2",
            fingerprint="stage2.0.branch_proj.0.weight",
            reference=torch_ref.fastestdet.ShuffleNetV2,
            stem=("first_conv.0", "first_conv.1"),
            block="stage{stage}.{block}",
            first_stage=2,
            left=_numbered("branch_proj", *_LEFT),
            right=_numbered("branch_main", *_RIGHT),
            branch=_numbered("branch_main", *_RIGHT),
            last=None,
            may_end_early=True,
            head="classifier",
        ),
        Layout(
            name="openpifpaf",
            repository="openpifpaf/openpifpaf",
            reference=torch_ref.openpifpaf.ShuffleNetV2,
            options=("down_kernel", "basic_kernel"),
            **_TORCHVISION_NAMES | {"stem": ("input_block.0.0", "input_block.0.1")},
        ),
        Layout(
            name="yolov5lite",
            repository="ppogg/YOLOv5-Lite",
            fingerprint="1.branch1.0.weight",
            reference=torch_ref.yolov5lite.ShuffleNetV2,
            root="model.",
            stem=("0.conv.0", "0.conv.1"),
            down="{odd}",
            block="{even}.{before}",
            left=_numbered("branch1", *_LEFT),
            right=_numbered("branch2", *_RIGHT),
            branch=_numbered("branch2", *_RIGHT),
            last=None,
            may_end_early=True,
            head="classifier",
        ),
    )
}
