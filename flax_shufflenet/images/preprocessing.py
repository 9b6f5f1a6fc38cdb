"""What a net expects of its images: size, normalisation and the names of its classes, as its file says."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.images import reading

CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}
"""Mean and standard deviation per channel, of pixel values from 0 to 1, that published CIFAR nets are trained with."""

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RAW_STATISTICS = ((0.0,) * 3, (1 / 255,) * 3)  # leaves values from 0 to 255
UNIT_STATISTICS = ((0.0,) * 3, (1.0,) * 3)  # values from 0 to 1


class _Input(NamedTuple):
    """How nets of some origin take their images, and whose that is."""

    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    whose: str
    bgr: bool = False


_BY_DATASET = {
    "cifar10": _Input(CIFAR_STATISTICS["cifar10"], "CIFAR-10's"),
    "cifar100": _Input(CIFAR_STATISTICS["cifar100"], "CIFAR-100's"),
    None: _Input(IMAGENET_STATISTICS, "ImageNet's"),
}
# Of the checkpoint layouts whose nets are trained in another way, by their authors' code.
_BY_LAYOUT = {
    "megvii": _Input(RAW_STATISTICS, "the paper authors', values from 0 to 255", bgr=True),
    "nanodet": _Input(IMAGENET_STATISTICS, "ImageNet's", bgr=True),
    "fastestdet": _Input(UNIT_STATISTICS, "FastestDet's, values from 0 to 1", bgr=True),
    "yolov5lite": _Input(UNIT_STATISTICS, "YOLOv5's, values from 0 to 1"),
}

# The short side of ImageNet's images before the centre of 224x224 is cut out.
_IMAGENET_SIDES = (224, 256)

_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the net's input, and what the outputs are called.

    ``mean`` and ``std`` are per channel, of pixel values from 0 to 1. ``short_side``: an image's short side is brought
    to so many pixels, and the middle cut out, as for ImageNet; where it is None, the whole image is stretched to
    ``size`` x ``size``.
    ``bgr``: the net takes blue first. ``assumed`` says what the net's file does not tell, by what it is about.
    """

    size: int
    short_side: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    class_names: tuple[str, ...]
    names_known: bool
    assumed: Mapping[str, str]

    def fit(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """An RGB image in the net's size."""
        if self.short_side is not None:
            return reading.centre_crop(image, self.size, self.short_side)
        return reading.stretched(image, self.size)

    @property
    def resize(self) -> str:
        """How ``fit`` brings an image to its size, in words."""
        cropped = f"short side to {self.short_side} pixels, centre of"
        how = "whole image stretched to" if self.short_side is None else cropped
        return f"{how} {self.size}x{self.size}, bilinear"


def _short_side(size: int, sides: tuple[int, int]) -> int:
    """The short side for crops of another ``size`` than that in ``sides``."""
    crop, whole = sides
    return round(size * whole / crop)


def expected_by(
    architecture: Architecture,
    metadata: Mapping[str, str],
    *,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Preprocessing:
    """What a net expects, by what was given, else by its file's metadata, else by what its architecture suggests.

    A net converted from PyTorch has no such metadata but its layout. With a stem for large images it is taken for an
    ImageNet net; with a stem for small ones and 10 or 100 classes, for one of CIFAR-10 or CIFAR-100. Nets of some
    layouts take other values, or blue first, as the paper authors' do. A net that averages a window is taken for one
    of the image size that leaves just that.

    Raises:
        ValueError: the metadata cannot be read.
    """
    for_large_images = architecture.stem_pool or architecture.stem_stride > 1
    cifar = None if for_large_images else {10: "cifar10", 100: "cifar100"}.get(architecture.num_classes)
    stored = _from_metadata(metadata, architecture.num_classes)
    assumed = {}

    usual = _BY_LAYOUT.get(_layout(architecture, metadata), _BY_DATASET[cifar])
    if not (mean or "mean" in stored) or not (std or "std" in stored):
        assumed["normalisation"] = usual.whose
    # Files in which training wrote the normalisation alone are of nets that took red first.
    order = stored.get("channel_order") or ("bgr" if usual.bgr and "mean" not in stored else "rgb")
    if order == "bgr" and "channel_order" not in stored:
        assumed["channels"] = "blue, green, red, as the authors' nets take them"

    if architecture.pool_size:
        usual_size = architecture.pool_size * architecture.shrinking
    else:
        usual_size = _IMAGENET_SIDES[0] if for_large_images else 32
    if size is None and "image_size" not in stored:
        whole = f"{usual_size}x{usual_size}"
        assumed["image size"] = (
            f"short side {_short_side(usual_size, _IMAGENET_SIDES)}, centre {whole}"
            if for_large_images
            else f"{whole}, the whole image stretched to it"
        )

    names = class_names or stored.get("class_names") or (_CIFAR10_NAMES if cifar == "cifar10" else None)
    if class_names is None and "class_names" not in stored and architecture.num_classes:
        assumed["class names"] = "CIFAR-10's" if names else "none, classes are numbers counted from 0"
    used_size: int = size or stored.get("image_size") or usual_size
    sides = _IMAGENET_SIDES if for_large_images else None
    if "image_size" in stored:
        sides = (stored["image_size"], stored["short_side"]) if "short_side" in stored else None
    short_side = _short_side(used_size, sides) if sides else None
    return Preprocessing(
        size=used_size,
        short_side=short_side,
        mean=mean or stored.get("mean") or usual.statistics[0],
        std=std or stored.get("std") or usual.statistics[1],
        bgr=order == "bgr",
        class_names=names or tuple(map(str, range(architecture.num_classes))),
        names_known="class_names" in stored,
        assumed=assumed,
    )


def _layout(architecture: Architecture, metadata: Mapping[str, str]) -> str:
    """The checkpoint layout that a net came in, as its file says or as its graph shows; empty where neither does."""
    if "layout" in metadata or architecture.shuffle != "before":
        return metadata.get("layout", "")
    return "megvii" if architecture.last_width else "fastestdet"


def _from_metadata(metadata: Mapping[str, str], num_classes: int) -> dict[str, Any]:
    """What training writes of a net's input and its classes, as far as the file has it."""
    stored: dict[str, Any] = {}
    for name, what, valid in (
        ("image_size", "a whole number of pixels", lambda value: type(value) is int and value > 0),
        ("short_side", "a whole number of pixels", lambda value: type(value) is int and value > 0),
        ("mean", "three numbers", _is_three_numbers),
        ("std", "three numbers above 0", lambda value: _is_three_numbers(value) and min(value) > 0),
        ("channel_order", "rgb or bgr", lambda value: value in ("rgb", "bgr")),
        (
            "class_names",
            f"{num_classes} names",
            lambda value: (
                isinstance(value, list) and len(value) == num_classes and all(isinstance(item, str) for item in value)
            ),
        ),
    ):
        if name in metadata:
            try:
                value = json.loads(metadata[name])
            except (ValueError, RecursionError):
                value = None
            if not valid(value):
                raise ValueError(f"its {name} is not {what}; the file is damaged or altered")
            stored[name] = tuple(value) if isinstance(value, list) else value
    return stored


def _is_three_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(item) in (int, float) and math.isfinite(item) for item in value)
    )
