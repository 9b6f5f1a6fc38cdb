"""Random crops and flips, and normalisation, as pure functions of uint8 images and a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key, UInt8

PADDING = 4  # pixels on each side, as in torchvision's RandomCrop(32, padding=4)


def normalise(
    images: UInt8[Array, "n h w 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float32[Array, "n h w 3"]:
    """Pixel values from 0 to 1, less ``mean``, over ``std``."""
    scale = 1 / (255 * jnp.array(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.array(mean, jnp.float32) / jnp.array(std, jnp.float32)


def augment(key: Key[Array, ""], images: UInt8[Array, "n h w 3"], *, flip: bool) -> UInt8[Array, "n h w 3"]:
    """Shifts each image by up to ``PADDING`` pixels either way, black beyond its edge, and mirrors half of them.

    Every image has its own shift and flip. ``flip=False`` leaves out the mirroring.
    """
    n, height, width, _ = images.shape
    shift_key, flip_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (2, n), 0, 2 * PADDING + 1)
    rows = shifts[0][:, None] + jnp.arange(height)
    columns = shifts[1][:, None] + jnp.arange(width)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(n, 1))
        columns = jnp.where(mirrored, columns[:, ::-1], columns)
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    return padded[jnp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
