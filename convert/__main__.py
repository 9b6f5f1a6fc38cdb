"""``python -m convert``: a PyTorch checkpoint to Flax, a Flax net to PyTorch, or one PyTorch layout to another."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

LayoutName = Literal["seed", "kuangliu", "chenyaofo", "torchvision", "weiaicunzai", "megvii", "ericsun99", "mmpretrain"]


@dataclass(frozen=True)
class Options:
    """Converts a ShuffleNetV2 between PyTorch and Flax, and proves the result by running both nets.

    A PyTorch checkpoint becomes a safetensors file that flax_shufflenet.load opens. A file that
    flax_shufflenet.save wrote becomes a PyTorch state_dict or, where the output ends in .onnx, an ONNX model (needs
    pip install -e '.[onnx]'): float32 images [batch, 3, size, size], normalised as in training, to class scores
    before the softmax. Exit codes: 0 converted and proven; 2 the command line is wrong; 1 anything else, and then
    nothing is written.
    """

    file: tyro.conf.Positional[Path]
    """The checkpoint: .pt, .pth, .safetensors, TorchScript or .pt2."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where to write. Default: beside the input, with the other format's ending."""
    to: LayoutName | None = None
    """Write a PyTorch state_dict in this layout. Default for a Flax net: the layout it came in."""
    stem: Literal["cifar", "imagenet"] | None = None
    """First layers, where the tensors cannot tell (torchvision's names): stride 1, or stride 2 and a max-pool.
    Default: cifar for 10 or 100 classes, otherwise imagenet."""
    use_ema: bool = False
    """Take the averaged weights that a trainer keeps beside the model."""
    backbone: bool = False
    """Take the backbone alone, without its head or the detector around it; the net then returns features."""
    key: str | None = None
    """Take the net at this place in the file, where there are several."""
    images: Path | None = None
    """Compare the two nets on the images in this folder, instead of on noise."""
    size: int | None = None
    """Side of the images that an ONNX model takes. Default: as the net's file says, else 32, or 224 for an ImageNet
    stem."""
    report: Path | None = None
    """Also write the certificate, with every layer's errors, to this Markdown file."""
    plot: Path | None = None
    """Also draw every layer's errors to this PNG."""
    force: bool = False
    """Overwrite files that exist."""


def main() -> int:
    options = tyro.cli(Options, prog="python -m convert", use_underscores=True, config=(tyro.conf.FlagCreatePairsOff,))
    # Torch and JAX take seconds to import, --help should not.
    from convert.errors import ConvertError
    from convert.job import run

    try:
        run(options)
    except ConvertError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
