"""Pixels as a net takes them."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8


@runtime_checkable
class Normalisation(Protocol):
    """How a net's images are normalised: what ``normalise`` takes."""

    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def bgr(self) -> bool: ...


def normalise(
    images: UInt8[Array, "n h w 3"], mean: tuple[float, ...], std: tuple[float, ...], *, bgr: bool = False
) -> Float32[Array, "n h w 3"]:
    """Pixel values from 0 to 1, less ``mean``, over ``std``; if ``bgr``, then in the order blue, green, red.

    ``mean`` and ``std`` are of red, green and blue either way.
    """
    # A difference and then a quotient, which XLA rounds the same whatever it fuses them with; a product and then a
    # difference would be one multiply-add here and two operations there.
    values = images.astype(jnp.float32) - 255 * jnp.array(mean, jnp.float32)
    values = values / (255 * jnp.array(std, jnp.float32))
    return values[..., ::-1] if bgr else values
