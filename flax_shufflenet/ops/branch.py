"""Branches of a net for inference: convolutions with biases and ReLUs in a row, in one call of the CPU engine."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jaxtyping import Float

from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.convolution import conv2d, output_size

FeatureMap = Float[Array, "n h w _"]

# What the engine's vectors are multiples of, on every processor.
_FILLED_UP_TO = 16


class Layer(NamedTuple):
    """A convolution with a bias and, if ``relu``, a ReLU, or a LeakyReLU where the slope is not 0; ``kernel`` is
    [kh kw cin/groups cout], ``bias`` [cout]."""

    kernel: np.ndarray
    bias: np.ndarray
    stride: int
    groups: int
    relu: bool
    negative_slope: float = 0.0

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.kernel.shape[-1]

    @property
    def pointwise(self) -> bool:
        return self.groups == 1 and self.stride == 1 and self.kernel.shape[:2] == (1, 1)


class Piece(NamedTuple):
    """Neighbouring channels of one of several maps."""

    map: int
    start: int
    stop: int


def applies(maps: Sequence[FeatureMap], layers: Sequence[Layer]) -> bool:
    """Whether the engine computes these layers: one depthwise convolution at most, without a ReLU, and one pointwise
    one at most on either side of it, none with a LeakyReLU."""
    kinds = [layer.depthwise for layer in layers]
    turns = all(one != other for one, other in itertools.pairwise(kinds)) and sum(kinds) <= 1
    known = all(layer.pointwise or (layer.depthwise and not layer.relu) for layer in layers)
    known = known and not any(layer.negative_slope for layer in layers)
    weights = [array for layer in layers for array in (layer.kernel, layer.bias)]
    return bool(layers) and turns and known and engine.applies(*maps, *weights)


def run(maps: Sequence[FeatureMap], pieces: Sequence[Piece], layers: Sequence[Layer]) -> Float[Array, "n oh ow _"]:
    """What the layers make of the pieces, laid one beside the other."""
    inputs = sum(piece.stop - piece.start for piece in pieces)
    weights, kinds = [], []
    for layer in layers:
        weights += map(jnp.asarray, _filled_up(layer))
        outputs = layer.kernel.shape[-1]
        kinds += [int(layer.depthwise), inputs, outputs, int(layer.relu)]
        inputs = outputs
    side, stride = next(((layer.kernel.shape[0], layer.stride) for layer in layers if layer.depthwise), (1, 1))
    places = tuple(number for piece in pieces for number in (piece.map, piece.start, piece.stop - piece.start))
    (y,) = _inference_branch(*maps, *weights, pieces=places, layers=tuple(kinds), side=side, stride=stride)
    return y


def _filled_up(layer: Layer) -> list[np.ndarray]:
    """Kernel and bias in rows of whole vectors, in what is computed in: with zeros or, if depthwise, repeated."""
    kernel = layer.kernel.astype(layer.bias.dtype)
    side, _, _, outputs = kernel.shape
    if layer.depthwise:
        times = np.lcm(outputs, _FILLED_UP_TO) // outputs
        return [np.tile(kernel.reshape(side * side, outputs), times), np.tile(layer.bias, times)]
    more = -outputs % _FILLED_UP_TO
    return [np.pad(kernel[0, 0], ((0, 0), (0, more))), np.pad(layer.bias, (0, more))]


def _reference(*arrays, pieces, layers, side, stride):
    count = len(layers) // 4
    maps, weights = arrays[: -2 * count], arrays[-2 * count :]
    x = jnp.concatenate(
        [maps[m][..., start : start + width] for m, start, width in zip(*[iter(pieces)] * 3, strict=True)], axis=-1
    ).astype(weights[0].dtype)
    for number in range(count):
        kernel, bias = weights[2 * number : 2 * number + 2]
        depthwise, inputs, outputs, relu = layers[4 * number : 4 * number + 4]
        shape = (side, side, 1, outputs) if depthwise else (1, 1, inputs, outputs)
        kernel = kernel[:, :outputs].reshape(shape)
        x = conv2d(x, kernel, stride=stride if depthwise else 1, groups=inputs if depthwise else 1)
        x = x + bias[:outputs]
        x = jax.nn.relu(x) if relu else x
    return [x.astype(maps[0].dtype)]


def _outcomes(*arrays, layers, stride, **_options):
    x, outputs = arrays[0], layers[-2]
    return [ShapedArray((x.shape[0], *output_size(x, stride), outputs), x.dtype)]


_inference_branch = engine.operation("inference_branch", _reference, _outcomes)
