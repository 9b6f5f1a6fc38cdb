"""What ``python -m convert`` can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from flax_shufflenet.errors import OptionError

LayoutName = Literal[
    "seed",
    "kuangliu",
    "chenyaofo",
    "torchvision",
    "weiaicunzai",
    "megvii",
    "ericsun99",
    "mmpretrain",
    "super_gradients",
    "birder",
    "pytorchcv",
    "pytorchcv_b",
    "nanodet",
    "fastestdet",
    "openpifpaf",
    "yolov5lite",
]


@dataclass(frozen=True)
class Options:
    """Converts a ShuffleNetV2 between PyTorch and Flax, and proves the result by running both nets.

    A PyTorch checkpoint becomes a safetensors file that flax_shufflenet.load opens. A file that
    flax_shufflenet.save wrote becomes a PyTorch state_dict or, where the output ends in .onnx, an ONNX model (needs
    pip install 'flax-shufflenet[onnx]'): float32 images [batch, 3, size, size], normalised as in training, to class
    scores before the softmax. Exit codes: 0 converted and proven; 2 the command line is wrong; 1 anything else, and
    then nothing is written.

    Raises:
        OptionError: a value out of its range.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The checkpoint: .pt, .pth, .safetensors, TorchScript or .pt2."""

    output: Annotated[
        Path | None,
        arg(
            aliases=["-o"],
            metavar="FILE",
            help_behavior_hint="(default: beside the input, with the other format's ending)",
        ),
    ] = None
    """Where to write."""

    to: Annotated[
        LayoutName | None, arg(metavar="LAYOUT", help_behavior_hint="(default, for a Flax net: the layout it came in)")
    ] = None
    """Write a PyTorch state_dict in this layout: seed, kuangliu, chenyaofo, torchvision, weiaicunzai, megvii,
    ericsun99, mmpretrain, super_gradients, birder, pytorchcv, pytorchcv_b, nanodet, fastestdet, openpifpaf or
    yolov5lite."""

    stem: Annotated[
        Literal["cifar", "imagenet", "strided", "pooled"] | None,
        arg(
            metavar="{cifar,imagenet,strided,pooled}",
            help_behavior_hint="(default: as running statistics say, or cifar for 10 or 100 classes, else imagenet)",
        ),
    ] = None
    """First layers, where the tensors cannot tell (torchvision's names): cifar is stride 1, imagenet stride 2 and a
    max-pool, strided stride 2 without one, pooled stride 1 with one."""

    activation: Annotated[
        Literal["relu", "leaky_relu"] | None,
        arg(
            metavar="{relu,leaky_relu}",
            help_behavior_hint="(default: leaky_relu within a NanoDet detector, relu for a lone backbone)",
        ),
    ] = None
    """What stands behind the convolutions, where the tensors cannot tell (NanoDet's backbones)."""

    shuffle: Annotated[
        Literal["after", "reverse"] | None, arg(metavar="{after,reverse}", help_behavior_hint="(default: after)")
    ] = None
    """How blocks shuffle, where the tensors cannot tell (pytorchcv's shufflenetv2b): reverse if the net was built with
    shuffle_group_first=False."""

    epsilon: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: as usual in the layout)")] = (
        None
    )
    """What batch normalisations add to the variance, which only whole modules tell: 1e-5 in most nets."""

    use_ema: bool = False
    """Take the averaged weights that a trainer keeps beside the model."""

    backbone: bool = False
    """Take the backbone alone, without its head or the detector around it; the net then returns features."""

    key: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: the only net there is)")] = None
    """Take the net at this place in the file, where there are several."""

    images: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: noise)")] = None
    """Compare the two nets on the images in this folder: up to 512 of them, the longer side brought down to 512 pixels,
    until they have half a million pixels in all."""

    size: Annotated[
        int | None,
        arg(
            metavar="PIXELS",
            help_behavior_hint="(default: as the net's file says, else 32, or 224 for an ImageNet stem)",
        ),
    ] = None
    """Side of the images that an ONNX model takes; for outputs in .onnx alone."""

    report: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Also write the certificate, with every layer's errors, to this Markdown file."""

    plot: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Also draw every layer's errors to this PNG."""

    force: bool = False
    """Overwrite files that exist."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise OptionError(f"--size must be at least 1, not {self.size}")
