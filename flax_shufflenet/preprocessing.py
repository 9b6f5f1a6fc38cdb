"""What a net expects of its images: size, normalisation and the names of its classes, as its file says."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_shufflenet import images
from flax_shufflenet.architecture import Architecture

CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}
"""Mean and standard deviation per channel, of pixel values from 0 to 1, that published CIFAR nets are trained with."""

_ASSUMED = {
    "cifar10": (CIFAR_STATISTICS["cifar10"], "CIFAR-10's"),
    "cifar100": (CIFAR_STATISTICS["cifar100"], "CIFAR-100's"),
    None: (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "ImageNet's"),
}
_RAW_STATISTICS = ((0.0,) * 3, (1 / 255,) * 3)  # leaves values from 0 to 255

# The short side of ImageNet's images before the centre of 224x224 is cut out.
_IMAGENET_SIDES = (224, 256)

_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the net's input, and what the outputs are called.

    ``mean`` and ``std`` are per channel, of pixel values from 0 to 1. ``crop``: the short side is brought to 256/224 of
    ``size``, and the middle cut out, as for ImageNet; otherwise the whole image is stretched to ``size`` x ``size``.
    ``bgr``: the net takes blue first. ``assumed`` says what the net's file does not tell, by what it is about.
    """

    size: int
    crop: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    class_names: tuple[str, ...]
    names_known: bool
    assumed: Mapping[str, str]

    def fit(self, image: Image.Image) -> UInt8[np.ndarray, "size size 3"]:
        """An RGB image in the net's size."""
        if self.crop:
            return images.centre_crop(image, self.size, _short_side(self.size))
        return images.stretched(image, self.size)

    @property
    def resize(self) -> str:
        """How ``fit`` brings an image to its size, in words."""
        how = f"short side to {_short_side(self.size)} pixels, centre of" if self.crop else "whole image stretched to"
        return f"{how} {self.size}x{self.size}, bilinear"


def _short_side(size: int) -> int:
    crop, whole = _IMAGENET_SIDES
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

    A net converted from PyTorch has no such metadata. With a stem for large images it is taken for an ImageNet net;
    with a stem for small ones and 10 or 100 classes, for one of CIFAR-10 or CIFAR-100. The paper authors' nets take
    blue first and raw pixel values.

    Raises:
        ValueError: the metadata cannot be read.
    """
    for_large_images = architecture.stem_pool or architecture.stem_stride > 1
    cifar = None if for_large_images else {10: "cifar10", 100: "cifar100"}.get(architecture.num_classes)
    stored = _from_metadata(metadata, architecture.num_classes)
    assumed = {}

    raw = architecture.shuffle == "before" and "mean" not in stored
    statistics, whose = (_RAW_STATISTICS, "the paper authors', values from 0 to 255") if raw else _ASSUMED[cifar]
    if not (mean or "mean" in stored) or not (std or "std" in stored):
        assumed["normalisation"] = whose
    if raw:
        assumed["channels"] = "blue, green, red, as the paper authors' nets take them"

    crop = "image_size" not in stored and for_large_images
    if size is None and "image_size" not in stored:
        assumed["image size"] = "short side 256, centre 224x224" if crop else "32x32, the whole image stretched to it"

    names = class_names or stored.get("class_names") or (_CIFAR10_NAMES if cifar == "cifar10" else None)
    if class_names is None and "class_names" not in stored and architecture.num_classes:
        assumed["class names"] = "CIFAR-10's" if names else "none, classes are numbers counted from 0"
    return Preprocessing(
        size=size or stored.get("image_size") or (_IMAGENET_SIDES[0] if for_large_images else 32),
        crop=crop,
        mean=mean or stored.get("mean") or statistics[0],
        std=std or stored.get("std") or statistics[1],
        bgr=raw,
        class_names=names or tuple(map(str, range(architecture.num_classes))),
        names_known="class_names" in stored,
        assumed=assumed,
    )


def _from_metadata(metadata: Mapping[str, str], num_classes: int) -> dict[str, Any]:
    """``image_size``, ``mean``, ``std`` and ``class_names``, as far as the file has them."""
    stored = {}
    for name, what, valid in (
        ("image_size", "a whole number of pixels", lambda value: type(value) is int and value > 0),
        ("mean", "three numbers", _is_three_numbers),
        ("std", "three numbers above 0", lambda value: _is_three_numbers(value) and min(value) > 0),
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
