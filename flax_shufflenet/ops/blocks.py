"""Blocks in train mode, unit by unit, as the CPU engine computes them.

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
from jax import Array, lax
from jaxtyping import Float

from flax_shufflenet.ops import native as engine

FeatureMap = Float[Array, "n h w c"]
OtherMap = Float[Array, "n oh ow oc"]
"""A map whose height, width and channels may differ from the input's."""
Channels = Float[Array, " c"]


class Unit(NamedTuple):
    """A unit's parameters: its HWIO kernel, and scale and bias of its batch normalisation."""

    kernel: Float[Array, "kh kw cin c"]
    scale: Channels
    bias: Channels


class Moments(NamedTuple):
    """The mean and biased variance of a batch, which gradients do not pass."""

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


def applies(*arrays: Array) -> bool:
    """Whether the engine computes with these. Elsewhere blocks are computed layer by layer."""
    return jax.default_backend() == "cpu" and engine.applies(*arrays)


# --- the operations, as the engine computes them, and in JAX


def _read(x: FeatureMap, how: Sequence[Channels], *, relu: bool) -> FeatureMap:
    if not how:
        return x
    mean, inverse, scale, bias = how
    y = (x - mean) * (scale * inverse) + bias
    return jax.nn.relu(y) if relu else y


def _convolution(x: FeatureMap, kernel: Array, stride: int) -> OtherMap:
    pad = ((kernel.shape[0] - 1) // 2,) * 2
    groups = x.shape[-1] // kernel.shape[2]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=layout, feature_group_count=groups
    )


def _with_statistics(z: FeatureMap, epsilon: float) -> list[Array]:
    mean, var = jnp.mean(z, (0, 1, 2)), jnp.var(z, (0, 1, 2))
    return [z, mean, var, 1 / jnp.sqrt(var + epsilon)]


def _pointwise(x, kernel, *how, epsilon, relu, first):
    x = x[..., first : first + kernel.shape[2]]
    return _with_statistics(_convolution(_read(x, how, relu=relu), kernel, 1), epsilon)


def _depthwise(x, kernel, *how, epsilon, relu, stride):
    return _with_statistics(_convolution(_read(x, how, relu=relu), kernel, stride), epsilon)


def _map_gradient(gradient, z, mean, inverse, scale, total, product):
    """Ioffe and Szegedy 2015, section 3."""
    factor, count = scale * inverse, z.size // z.shape[-1]
    return factor * (gradient - (z - mean) * (inverse * inverse * product / count) - total / count)


def _passed(gradient, x, how, *, relu):
    """A gradient where the ReLU passes it, and its two sums."""
    mean, inverse, scale, bias = how
    if relu:
        gradient = jnp.where((x - mean) * (scale * inverse) + bias > 0, gradient, 0)
    return [gradient, jnp.sum(gradient, (0, 1, 2)), jnp.sum(gradient * (x - mean), (0, 1, 2))]


def _convolution_gradient(of_output, x, kernel, how, *, relu, stride):
    dz = _map_gradient(*of_output)
    dx, dkernel = jax.vjp(partial(_convolution, stride=stride), _read(x, how, relu=relu), kernel)[1](dz)
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
    dx, dkernel = _convolution_gradient(of_output, x[..., channels], kernel, (), relu=False, stride=1)
    there = rest[0].at[..., channels]
    return [there.add(dx) if add else there.set(dx), dkernel]


def _depthwise_gradient(*arrays, relu, stride):
    return _convolution_gradient(arrays[:7], arrays[7], arrays[8], arrays[9:], relu=relu, stride=stride)


def _join(left, right, *how, left_relu, right_relu):
    right = _read(right, how[:4], relu=right_relu)
    left = _read(left[..., : right.shape[-1]], how[4:], relu=left_relu)
    return [jnp.stack([left, right], axis=-1).reshape(*right.shape[:3], -1)]


def _join_gradient(dy, right, *others, left_relu, right_relu):
    dleft, dright = dy[..., ::2], dy[..., 1::2]
    of_right = _passed(dright, right, others[:4], relu=right_relu)
    if len(others) == 4:
        return [jnp.concatenate([dleft, jnp.zeros_like(dleft)], axis=-1), *of_right]
    return [*_passed(dleft, others[4], others[5:], relu=left_relu), *of_right]


_pointwise_unit = engine.operation("pointwise_unit", _pointwise)
_pointwise_unit_gradient = engine.operation("pointwise_unit_gradient", _pointwise_gradient)
_depthwise_unit = engine.operation("depthwise_unit", _depthwise)
_depthwise_unit_gradient = engine.operation("depthwise_unit_gradient", _depthwise_gradient)
_join_branches = engine.operation("join", _join)
_join_branches_gradient = engine.operation("join_gradient", _join_gradient)


# --- units


def _run(operation, unit: Unit, x: FeatureMap | Normalised, epsilon: float, *, relu: bool, **options):
    """A unit's normalised map and the statistics that it is normalised with."""
    arrays = (x.map, unit.kernel, *x.how) if isinstance(x, Normalised) else (x, unit.kernel)
    z, mean, var, inverse = operation(*arrays, epsilon=epsilon, relu=relu, **options)
    return Normalised(z, mean, inverse, unit.scale, unit.bias), Moments(mean, var)


def _differentiate(operation, gradient: Gradient, output: Normalised, unit: Unit, x, *rest, relu: bool, **options):
    """The gradient of a unit's input, and of its parameters."""
    normalised = isinstance(x, Normalised)
    arrays = (x.map, unit.kernel, *x.how) if normalised else (x, unit.kernel, *rest)
    of_output = (gradient.map, output.map, output.mean, output.inverse, output.scale, gradient.sum, gradient.product)
    dx, dkernel, *sums = operation(*of_output, *arrays, relu=relu, **options)
    of_unit = Unit(dkernel, gradient.product * output.inverse, gradient.sum)
    return (Gradient(dx, *sums) if normalised else dx), of_unit


# --- stride 1


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def basic_block(
    x: FeatureMap, units: tuple[Unit, Unit, Unit], epsilon: float
) -> tuple[FeatureMap, tuple[Moments, ...]]:
    """A block of stride 1 with two halves and a shuffle in two groups after it: pointwise with ReLU, depthwise,
    pointwise with ReLU on the second half of the channels."""
    return _basic_forward(x, units, epsilon)[0]


@partial(jax.jit, static_argnums=2)
def _basic_forward(x, units, epsilon):
    first, depthwise, last = units
    one, *moments_one = _run(_pointwise_unit, first, x, epsilon, relu=False, first=x.shape[-1] // 2)
    two, *moments_two = _run(_depthwise_unit, depthwise, one, epsilon, relu=True, stride=1)
    three, *moments_three = _run(_pointwise_unit, last, two, epsilon, relu=False, first=0)
    (y,) = _join_branches(x, three.map, *three.how, left_relu=False, right_relu=True)
    return (y, (*moments_one, *moments_two, *moments_three)), (x, units, (one, two, three))


@partial(jax.jit, static_argnums=0)
def _basic_backward(epsilon, residuals, cotangents):
    x, (first, depthwise, last), (one, two, three) = residuals
    dx, *of_three = _join_branches_gradient(cotangents[0], three.map, *three.how, left_relu=False, right_relu=True)
    of_three = Gradient(*of_three)
    of_two, dlast = _differentiate(_pointwise_unit_gradient, of_three, three, last, two, relu=False, first=0, add=False)
    of_one, ddepthwise = _differentiate(_depthwise_unit_gradient, of_two, two, depthwise, one, relu=True, stride=1)
    half = x.shape[-1] // 2
    dx, dfirst = _differentiate(_pointwise_unit_gradient, of_one, one, first, x, dx, relu=False, first=half, add=False)
    return dx, (dfirst, ddepthwise, dlast)


basic_block.defvjp(_basic_forward, _basic_backward)


# --- stride 2


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def down_block(
    x: FeatureMap, left: tuple[Unit, Unit], right: tuple[Unit, Unit, Unit], relu: bool, epsilon: float
) -> tuple[OtherMap, tuple[Moments, ...]]:
    """A block whose two branches, of as many channels each, both read the whole map, with a shuffle in two groups after
    it: depthwise and pointwise on the left; pointwise, depthwise and pointwise on the right, the depthwise ones of
    stride 2. ``relu`` says whether ReLUs follow the pointwise ones."""
    return _down_forward(x, left, right, relu, epsilon)[0]


@partial(jax.jit, static_argnums=(3, 4))
def _down_forward(x, left, right, relu, epsilon):
    left_one, *moments = _run(_depthwise_unit, left[0], x, epsilon, relu=False, stride=2)
    left_two, *more = _run(_pointwise_unit, left[1], left_one, epsilon, relu=False, first=0)
    moments += more
    one, *more = _run(_pointwise_unit, right[0], x, epsilon, relu=False, first=0)
    moments += more
    two, *more = _run(_depthwise_unit, right[1], one, epsilon, relu=relu, stride=2)
    moments += more
    three, *more = _run(_pointwise_unit, right[2], two, epsilon, relu=False, first=0)
    moments += more
    how = (*three.how, *left_two.how)
    (y,) = _join_branches(left_two.map, three.map, *how, left_relu=relu, right_relu=relu)
    return (y, tuple(moments)), (x, left, right, (left_one, left_two), (one, two, three))


@partial(jax.jit, static_argnums=(0, 1))
def _down_backward(relu, epsilon, residuals, cotangents):
    x, left, right, (left_one, left_two), (one, two, three) = residuals
    others = (*three.how, left_two.map, *left_two.how)
    found = _join_branches_gradient(cotangents[0], three.map, *others, left_relu=relu, right_relu=relu)
    of_left_two, of_three = Gradient(*found[:3]), Gradient(*found[3:])
    pointwise = partial(_differentiate, _pointwise_unit_gradient, relu=False, first=0)
    depthwise = partial(_differentiate, _depthwise_unit_gradient, stride=2)
    of_left_one, dleft_two = pointwise(of_left_two, left_two, left[1], left_one, add=False)
    dx, dleft_one = depthwise(of_left_one, left_one, left[0], x, relu=False)
    of_two, dthree = pointwise(of_three, three, right[2], two, add=False)
    of_one, dtwo = depthwise(of_two, two, right[1], one, relu=relu)
    dx, done = pointwise(of_one, one, right[0], x, dx, add=True)
    return dx, (dleft_one, dleft_two), (done, dtwo, dthree)


down_block.defvjp(_down_forward, _down_backward)
