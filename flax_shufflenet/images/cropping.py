"""Crops as large images are trained on: torchvision's ``RandomResizedCrop``, of files that are read no finer than that
takes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_shufflenet.images.reading import ImageFile, opened, upright

# torchvision's defaults, from Szegedy et al. (https://arxiv.org/abs/1409.4842): share of the image's area, width over
# height, and how often it tries.
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10

# The more, the nearer to the pixels of the whole image: with 2, half a level of 255 apart on average, at most.
_FINER = 2

_ORIENTATION, _LYING = 0x0112, range(5, 9)  # EXIF's tag, and its values for images whose sides change places


class Box(NamedTuple):
    """A part of an image, in pixels from its left upper corner."""

    left: int
    top: int
    width: int
    height: int


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """What ``torchvision.transforms.RandomResizedCrop.get_params`` draws for an image of this size.

    Area and the logarithm of width over height are uniform, and so is the place. The first of ten draws that fits the
    image is taken; if none does, the largest box in the middle whose sides' ratio is allowed.
    """
    low, high = map(math.log, CROP_RATIO)
    for _ in range(_ATTEMPTS):
        area = width * height * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(low, high))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
            return Box(int(left), int(top), columns, rows)
    least, most = CROP_RATIO
    columns, rows = width, height
    if width / height < least:
        rows = round(width / least)
    elif width / height > most:
        columns = round(height * most)
    return Box((width - columns) // 2, (height - rows) // 2, columns, rows)


def random_crop(
    file: ImageFile, size: int, random: np.random.Generator, *, flip: bool
) -> UInt8[np.ndarray, "size size 3"]:
    """A random part of the image in a file as ``size`` x ``size`` pixels, and with ``flip`` mirrored half of the time.

    A JPEG file is decoded at a half, a quarter or an eighth of its size, which takes less time, where that leaves
    ``_FINER`` times the pixels that are asked for either way.

    Raises:
        ImageError: it cannot be read.
    """
    with opened(file) as image:
        width, height = image.size
        lies = image.getexif().get(_ORIENTATION) in _LYING
        box = random_box(height, width, random) if lies else random_box(width, height, random)
        shrinking = max(1.0, min(box.width, box.height) / (size * _FINER))
        drafted = image.draft(None, (math.ceil(width / shrinking), math.ceil(height / shrinking)))
        reduction = width / drafted[1][2] if drafted else 1.0
        pixels = np.asarray(_resized(upright(image), box, reduction, size))
    return pixels[:, ::-1] if flip and random.random() < 0.5 else pixels


def _resized(image: Image.Image, box: Box, reduction: float, size: int) -> Image.Image:
    """The part ``box`` of an image that was decoded at 1/``reduction`` of its size."""
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    if reduction == 1:  # as torchvision: nothing beyond the part has a say in its edges
        return image.crop(edges).resize((size, size), Image.Resampling.BILINEAR)
    left, top, right, bottom = (edge / reduction for edge in edges)
    part = (left, top, min(right, image.width), min(bottom, image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=part)
