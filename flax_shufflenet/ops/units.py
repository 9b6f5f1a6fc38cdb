"""Units of blocks as the CPU engine computes them, and the same in JAX.

A unit is a convolution and the batch normalisation after it. Its map is kept as the convolution leaves it, and is
normalised, and rectified, where the next unit reads it: between two units one map is written and one read, where layer
by layer it would be three and four. Gradients go the same way: a unit's are those of its normalised map where the ReLU
passes them, together with the two sums that the normalisation's own gradient needs.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jaxtyping import Float

from flax_shufflenet.ops import batch_norm
from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.convolution import outcome as convolution_outcome
from flax_shufflenet.ops.convolution import reference as convolution
from flax_shufflenet.ops.divided import average
from flax_shufflenet.ops.rounding import accumulator, inverse_std

FeatureMap = Float[Array, "n h w c"]
OtherMap = Float[Array, "n oh ow oc"]
"""A map whose height, width and channels may differ from the input's."""
Channels = Float[Array, " c"]


class Unit(NamedTuple):
    """A unit's parameters: its HWIO kernel, and scale and bias of its batch normalisation; in eval mode, the statistics
    that it normalises with, otherwise the batch's own."""

    kernel: Float[Array, "kh kw cin c"]
    scale: Channels
    bias: Channels
    mean: Channels | None
    var: Channels | None


class Moments(NamedTuple):
    """The mean and biased variance of a batch, which gradients do not pass; none in eval mode."""

    mean: Channels
    var: Channels


class Normalised(NamedTuple):
    """A map that is normalised where it is read."""

    map: FeatureMap
    mean: Channels
    inverse: Channels
    """Over the standard deviation."""
    scale: Channels
    bias: Channels

    @property
    def how(self) -> tuple[Channels, Channels, Channels, Channels]:
        return self.mean, self.inverse, self.scale, self.bias


class Gradient(NamedTuple):
    """Of a normalised map, where its ReLU passes it; its sum, and that of its products with the centred map."""

    map: FeatureMap
    sum: Channels
    product: Channels


# --- the operations, as the engine computes them, and in JAX: maps of bfloat16 are only kept in it


def _wide(x: Array) -> Array:
    return x.astype(accumulator(x.dtype))


def _read(x: FeatureMap, how: Sequence[Channels], *, relu: bool) -> FeatureMap:
    return batch_norm.normalise_reference(_wide(x), *how, relu=relu)[0] if how else _wide(x)


def _convolution(x: FeatureMap, kernel: Array, stride: int) -> OtherMap:
    return convolution(x, _wide(kernel), stride=stride, groups=x.shape[-1] // kernel.shape[2])


def _with_statistics(z: FeatureMap, epsilon: float, *, measure: bool) -> list[Array]:
    if not measure:
        return [z, *[jnp.zeros(z.shape[-1], accumulator(z.dtype))] * 3]
    return [z, *batch_norm.statistics_reference(z, epsilon=epsilon)]


def _pointwise(x, kernel, *how, epsilon, measure, relu, first):
    own = x[..., first : first + kernel.shape[2]]
    z = _convolution(_read(own, how, relu=relu), kernel, 1).astype(x.dtype)
    return _with_statistics(z, epsilon, measure=measure)


def _depthwise(x, kernel, *how, epsilon, measure, relu, stride):
    z = _convolution(_read(x, how, relu=relu), kernel, stride).astype(x.dtype)
    return _with_statistics(z, epsilon, measure=measure)


def _map_gradient(gradient, z, mean, inverse, scale, total, product):
    """Ioffe and Szegedy 2015, section 3."""
    factor, count = scale * inverse, z.size // z.shape[-1]
    return factor * (_wide(gradient) - (_wide(z) - mean) * (inverse * inverse * product / count) - total / count)


def _passed(gradient, x, how, *, relu):
    """A gradient where the ReLU passes it, and its two sums."""
    passed, _ = batch_norm.passed(gradient, x, *how, relu=relu)
    return [passed.astype(x.dtype), *batch_norm.gradient_sums_reference(passed, x, *how, relu=False)]


def _convolution_gradient(of_output, x, kernel, how, *, relu, stride):
    dz = _map_gradient(*of_output)
    dx, dkernel = jax.vjp(partial(_convolution, stride=stride), _read(x, how, relu=relu), kernel)[1](dz)
    dx = dx.astype(x.dtype)
    if not how:
        return [dx, dkernel]
    dx, *sums = _passed(dx, x, how, relu=relu)
    return [dx, dkernel, *sums]


def _pointwise_gradient(*arrays, relu, first, add):
    of_output, x, kernel, rest = arrays[:7], arrays[7], arrays[8], arrays[9:]
    if len(rest) != 1:
        return _convolution_gradient(of_output, x, kernel, rest, relu=relu, stride=1)
    # Into the channels of a map that has the other channels' gradient, or another branch's, already.
    channels = slice(first, first + kernel.shape[2])
    dx, dkernel = _convolution_gradient(of_output, _wide(x[..., channels]), kernel, (), relu=False, stride=1)
    there = _wide(rest[0]).at[..., channels]
    return [(there.add(dx) if add else there.set(dx)).astype(x.dtype), dkernel]


def _depthwise_gradient(*arrays, relu, stride):
    return _convolution_gradient(arrays[:7], arrays[7], arrays[8], arrays[9:], relu=relu, stride=stride)


def _join(left, right, *how, left_relu, right_relu):
    right_half = _read(right, how[:4], relu=right_relu)
    left_half = _read(left[..., : right.shape[-1]], how[4:], relu=left_relu)
    return [jnp.stack([left_half, right_half], axis=-1).reshape(*right.shape[:3], -1).astype(right.dtype)]


def _join_gradient(dy, right, *others, left_relu, right_relu):
    dleft, dright = dy[..., ::2], dy[..., 1::2]
    of_right = _passed(dright, right, others[:4], relu=right_relu)
    if len(others) == 4:
        return [jnp.concatenate([dleft, jnp.zeros_like(dleft)], axis=-1), *of_right]
    return [*_passed(dleft, others[4], others[5:], relu=left_relu), *of_right]


# --- of which shapes and dtypes the outcomes are


def _unit_outcomes(x, kernel, *_how, stride=1, **_options):
    z = convolution_outcome(x, kernel, stride=stride)
    return [z, *engine.vectors(3, z)]


def _unit_gradient_outcomes(*arrays, **_options):
    x, kernel, how_or_into = arrays[7], arrays[8], arrays[9:]
    sums = engine.vectors(2, x) if len(how_or_into) == 4 else []
    return [engine.like(x), engine.like(kernel), *sums]


def _join_outcomes(_left, right, *_how, **_options):
    *pixels, channels = right.shape
    return [ShapedArray((*pixels, 2 * channels), right.dtype)]


def _join_gradient_outcomes(dy, right, *others, **_options):
    # Without a normalised left map: the gradient of the whole map that its first half was read from.
    of_left = [engine.like(others[4]), *engine.vectors(2, others[4])] if len(others) > 4 else [engine.like(dy)]
    return [*of_left, engine.like(right), *engine.vectors(2, right)]


pointwise_unit = engine.operation("pointwise_unit", _pointwise, _unit_outcomes)
pointwise_unit_gradient = engine.operation(
    "pointwise_unit_gradient", _pointwise_gradient, _unit_gradient_outcomes, in_place=9
)
depthwise_unit = engine.operation("depthwise_unit", _depthwise, _unit_outcomes)
depthwise_unit_gradient = engine.operation("depthwise_unit_gradient", _depthwise_gradient, _unit_gradient_outcomes)
join_branches = engine.operation("join", _join, _join_outcomes)
join_branches_gradient = engine.operation("join_gradient", _join_gradient, _join_gradient_outcomes)


# --- units


def run(operation, epsilon, axis_name, unit: Unit, x: FeatureMap | Normalised, *, relu: bool, **options):
    """A unit's normalised map and the statistics that it is normalised with; ``axis_name`` is that of ``divided``."""
    arrays = (x.map, unit.kernel, *x.how) if isinstance(x, Normalised) else (x, unit.kernel)
    z, mean, var, inverse = operation(*arrays, epsilon=epsilon, measure=unit.mean is None, relu=relu, **options)
    if unit.mean is not None and unit.var is not None:
        mean, inverse = unit.mean, inverse_std(unit.var, epsilon)
    else:
        mean, var, inverse = batch_norm.synchronise(mean, var, inverse, epsilon, axis_name)
    return Normalised(z, mean, inverse, unit.scale, unit.bias), Moments(mean, var)


def differentiate(
    operation, axis_name, gradient: Gradient, output: Normalised, unit: Unit, x, *rest, relu: bool, **options
):
    """The gradient of a unit's input, and of its parameters."""
    normalised = isinstance(x, Normalised)
    arrays = (x.map, unit.kernel, *x.how) if normalised else (x, unit.kernel, *rest)
    _, total, product = gradient
    dscale, dmean, dvar = product * output.inverse, None, None
    if unit.mean is not None:
        # The map moves nothing but itself, and what it is normalised with has gradients of its own.
        dmean = -unit.scale * output.inverse * total
        dvar = -unit.scale * output.inverse**3 * product / 2
        total, product = jnp.zeros_like(total), jnp.zeros_like(product)
    else:
        # The operation divides them by the number of values in its own part of the batch.
        total, product = average(jnp.stack([total, product]), axis_name)
    of_output = (gradient.map, output.map, output.mean, output.inverse, output.scale, total, product)
    dx, dkernel, *sums = operation(*of_output, *arrays, relu=relu, **options)
    of_unit = Unit(dkernel, dscale, gradient.sum, dmean, dvar)
    return (Gradient(dx, *sums) if normalised else dx), of_unit
