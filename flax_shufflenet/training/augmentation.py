"""Random crops, flips and erasing as pure functions of images and a key."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int, Key, UInt8

from flax_shufflenet.training import devices
from flax_shufflenet.training.config import PaddingMode

# torchvision's RandomErasing: share of the image's area, height over width, and how often it tries.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
_ERASING_ATTEMPTS = 10


def augment(
    key: Key[Array, ""],
    images: UInt8[Array, "n h w 3"],
    *,
    flip: bool,
    padding: int,
    padding_mode: PaddingMode,
) -> UInt8[Array, "n h w 3"]:
    """torchvision's ``RandomCrop((h, w), padding, padding_mode=padding_mode)``, then ``RandomHorizontalFlip``.

    So each image is shifted by up to ``padding`` pixels either way; beyond its edge it is black ("constant") or its
    own mirror image, with the edge once ("reflect", for a ``padding`` below h and w). Every image has its own shift
    and flip. ``flip=False`` leaves out the mirroring. In a function that ``devices.jit`` maps, ``images`` are a
    device's part of a batch, and what happens to an image is what would on one device.
    """
    n, height, width, _ = images.shape
    rows, columns = devices.own_part(_crops(key, devices.whole_count(n), height, width, flip=flip, padding=padding))
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode=padding_mode)
    return jax.vmap(lambda image, rows, columns: image[rows[:, None], columns])(padded, rows, columns)


def _crops(
    key: Key[Array, ""], n: int, height: int, width: int, *, flip: bool, padding: int
) -> tuple[Int[Array, "n h"], Int[Array, "n w"]]:
    """The rows and columns of n padded images that are kept."""
    shift_key, flip_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (2, n), 0, 2 * padding + 1)
    rows = shifts[0][:, None] + jnp.arange(height)
    columns = shifts[1][:, None] + jnp.arange(width)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(n, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    return rows, columns


def erase(key: Key[Array, ""], images: Float32[Array, "n h w 3"], *, probability: float) -> Float32[Array, "n h w 3"]:
    """Sets a random rectangle of some of the images to 0: ``torchvision.transforms.RandomErasing(p=probability)``.

    Normalised images are meant, where 0 is the mean colour. As in torchvision (after Zhong et al.,
    https://arxiv.org/abs/1708.04896), the rectangle's area is uniform in ``ERASED_AREA`` and the logarithm of its
    height over its width is uniform in ``ERASED_RATIO``; the first of ten draws that is smaller than the image either
    way is taken, and if none is, the image stays whole. Under ``devices.jit`` it is as ``augment``.
    """
    n, height, width, _ = images.shape
    rows, columns = devices.own_part(_rectangles(key, devices.whole_count(n), height, width, probability=probability))
    inside = rows[:, :, None] & columns[:, None, :]
    return jnp.where(inside[..., None], 0, images)


def _rectangles(
    key: Key[Array, ""], n: int, height: int, width: int, *, probability: float
) -> tuple[Bool[Array, "n h"], Bool[Array, "n w"]]:
    """The rows and columns of n images that are in a rectangle; no rows where there is none."""
    chosen_key, area_key, ratio_key, place_key = jax.random.split(key, 4)
    draws = (n, _ERASING_ATTEMPTS)
    area = height * width * jax.random.uniform(area_key, draws, minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    low, high = map(math.log, ERASED_RATIO)
    ratio = jnp.exp(jax.random.uniform(ratio_key, draws, minval=low, maxval=high))
    heights, widths = jnp.round(jnp.sqrt(area * ratio)), jnp.round(jnp.sqrt(area / ratio))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    size = jnp.stack([jnp.take_along_axis(sides, first, axis=1)[:, 0] for sides in (heights, widths)])
    # Every place at which the rectangle lies inside the image is equally likely.
    room = jnp.array([[height], [width]]) - size
    start = jnp.floor(jax.random.uniform(place_key, (2, n)) * (room + 1))
    rows, columns = (
        (start[axis, :, None] <= jnp.arange(length)) & (jnp.arange(length) < (start + size)[axis, :, None])
        for axis, length in enumerate((height, width))
    )
    erased = jax.random.bernoulli(chosen_key, probability, (n,)) & fits.any(axis=1)
    return rows & erased[:, None], columns
