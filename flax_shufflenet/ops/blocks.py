"""Blocks as the CPU engine computes them, with their gradients; see ``units``."""

from functools import partial

import jax
from jax import Array

from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.divided import vary_alike
from flax_shufflenet.ops.units import (
    FeatureMap,
    Gradient,
    Moments,
    OtherMap,
    Unit,
    depthwise_unit,
    depthwise_unit_gradient,
    differentiate,
    join_branches,
    join_branches_gradient,
    pointwise_unit,
    pointwise_unit_gradient,
    run,
)


def applies(*arrays: Array) -> bool:
    """Whether the engine computes with these. Elsewhere blocks are computed layer by layer."""
    return jax.default_backend() == "cpu" and engine.applies(*arrays)


def _forward_units(epsilon, axis_name):
    """The pointwise unit and the depthwise one."""
    return [partial(run, operation, epsilon, axis_name) for operation in (pointwise_unit, depthwise_unit)]


def _backward_units(axis_name):
    operations = pointwise_unit_gradient, depthwise_unit_gradient
    return [partial(differentiate, operation, axis_name) for operation in operations]


# --- stride 1


def basic_block(
    x: FeatureMap, units: tuple[Unit, ...], epsilon: float, axis_name: str | None = None
) -> tuple[FeatureMap, tuple[Moments, ...]]:
    """A block of stride 1 with two halves and a shuffle in two groups after it: pointwise with ReLU, depthwise,
    pointwise with ReLU on the second half of the channels. ``axis_name`` is that of ``divided``."""
    return _basic_block(*vary_alike((x, units)), epsilon, axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _basic_block(x, units, epsilon, axis_name):
    return _basic_forward(x, units, epsilon, axis_name)[0]


@partial(jax.jit, static_argnums=(2, 3))
def _basic_forward(x, units, epsilon, axis_name):
    pointwise, depthwise = _forward_units(epsilon, axis_name)
    one, moments_one = pointwise(units[0], x, relu=False, first=x.shape[-1] // 2)
    two, moments_two = depthwise(units[1], one, relu=True, stride=1)
    three, moments_three = pointwise(units[2], two, relu=False, first=0)
    (y,) = join_branches(x, three.map, *three.how, left_relu=False, right_relu=True)
    return (y, (moments_one, moments_two, moments_three)), (x, units, (one, two, three))


@partial(jax.jit, static_argnums=(0, 1))
def _basic_backward(epsilon, axis_name, residuals, cotangents):
    x, units, (one, two, three) = residuals
    pointwise, depthwise = _backward_units(axis_name)
    dx, *of_three = join_branches_gradient(cotangents[0], three.map, *three.how, left_relu=False, right_relu=True)
    of_three = Gradient(*of_three)
    of_two, dthree = pointwise(of_three, three, units[2], two, relu=False, first=0, add=False)
    of_one, dtwo = depthwise(of_two, two, units[1], one, relu=True, stride=1)
    dx, done = pointwise(of_one, one, units[0], x, dx, relu=False, first=x.shape[-1] // 2, add=False)
    return dx, (done, dtwo, dthree)


_basic_block.defvjp(_basic_forward, _basic_backward)


# --- stride 2


def down_block(
    x: FeatureMap,
    left: tuple[Unit, ...],
    right: tuple[Unit, ...],
    relu: bool,
    epsilon: float,
    axis_name: str | None = None,
) -> tuple[OtherMap, tuple[Moments, ...]]:
    """A block whose two branches, of as many channels each, both read the whole map, with a shuffle in two groups after
    it: depthwise and pointwise on the left; pointwise, depthwise and pointwise on the right, the depthwise ones of
    stride 2. ``relu`` says whether ReLUs follow the pointwise ones. ``axis_name`` is that of ``divided``."""
    return _down_block(*vary_alike((x, left, right)), relu, epsilon, axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _down_block(x, left, right, relu, epsilon, axis_name):
    return _down_forward(x, left, right, relu, epsilon, axis_name)[0]


@partial(jax.jit, static_argnums=(3, 4, 5))
def _down_forward(x, left, right, relu, epsilon, axis_name):
    pointwise, depthwise = _forward_units(epsilon, axis_name)
    left_one, moments_left_one = depthwise(left[0], x, relu=False, stride=2)
    left_two, moments_left_two = pointwise(left[1], left_one, relu=False, first=0)
    one, moments_one = pointwise(right[0], x, relu=False, first=0)
    two, moments_two = depthwise(right[1], one, relu=relu, stride=2)
    three, moments_three = pointwise(right[2], two, relu=False, first=0)
    moments = (moments_left_one, moments_left_two, moments_one, moments_two, moments_three)
    how = (*three.how, *left_two.how)
    (y,) = join_branches(left_two.map, three.map, *how, left_relu=relu, right_relu=relu)
    return (y, moments), (x, left, right, (left_one, left_two), (one, two, three))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _down_backward(relu, epsilon, axis_name, residuals, cotangents):
    x, left, right, (left_one, left_two), (one, two, three) = residuals
    others = (*three.how, left_two.map, *left_two.how)
    found = join_branches_gradient(cotangents[0], three.map, *others, left_relu=relu, right_relu=relu)
    of_left_two, of_three = Gradient(*found[:3]), Gradient(*found[3:])
    pointwise, depthwise = _backward_units(axis_name)
    of_left_one, dleft_two = pointwise(of_left_two, left_two, left[1], left_one, relu=False, first=0, add=False)
    dx, dleft_one = depthwise(of_left_one, left_one, left[0], x, relu=False, stride=2)
    of_two, dthree = pointwise(of_three, three, right[2], two, relu=False, first=0, add=False)
    of_one, dtwo = depthwise(of_two, two, right[1], one, relu=relu, stride=2)
    dx, done = pointwise(of_one, one, right[0], x, dx, relu=False, first=0, add=True)
    return dx, (dleft_one, dleft_two), (done, dtwo, dthree)


_down_block.defvjp(_down_forward, _down_backward)
