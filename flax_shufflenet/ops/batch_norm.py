"""Batch normalisation by the batch's own statistics, which may be divided among devices."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jaxtyping import Array, Float

from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.divided import average, vary_alike
from flax_shufflenet.ops.rounding import accumulator, inverse_std

Images = Float[Array, "n h w c"]
Channels = Float[Array, " c"]


def batch_norm(
    x: Images, scale: Channels, bias: Channels, epsilon: float, relu: bool, axis_name: str | None = None
) -> tuple[Images, Channels, Channels]:
    """``x`` normalised over n, h and w, then rectified if ``relu``, and the mean and biased variance it was
    normalised with.

    Two passes, since E[x^2] - E[x]^2 cancels: at a mean of 10,000 standard deviations it is wrong by a
    factor. Statistics of bfloat16 are computed in float32; the result has the dtype of ``x``. The ReLU is part of
    it because its gradient is then found from ``x`` again, and nothing else needs to be kept or written out.

    With an ``axis_name``, statistics are those of the whole batch, and gradients those of the sum of what all devices
    differentiate. A device's gradients of ``scale`` and ``bias`` are its own share: they are yet to be added up, as all
    parameters' are.
    """
    return _batch_norm(*vary_alike((x, scale, bias)), epsilon, relu, axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, epsilon, relu, axis_name):
    return _forward(x, scale, bias, epsilon, relu, axis_name)[0]


@partial(jax.jit, static_argnums=(3, 4, 5))
def _forward(x, scale, bias, epsilon, relu, axis_name):
    mean, var, inverse = statistics(x, epsilon=epsilon)
    mean, var, inverse = synchronise(mean, var, inverse, epsilon, axis_name)
    how = mean, inverse, scale, bias
    (y,) = normalise(x, *how, relu=relu)
    return (y, mean, var), (x, how)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _backward(epsilon, relu, axis_name, residuals, cotangents):
    """Ioffe and Szegedy 2015, section 3."""
    x, how = residuals
    _, inverse, scale, _ = how
    dy, dmean, dvar = cotangents
    total, product = gradient_sums(dy, x, *how, relu=relu)
    factor, count = scale * inverse, x.size // x.shape[-1]
    per_centred = (2 * dvar - factor * inverse * (inverse * product)) / count
    per_value = (dmean - factor * total) / count
    per_centred, per_value = average(jnp.stack([per_centred, per_value]), axis_name)  # in one exchange
    (dx,) = input_gradient(dy, x, *how, per_centred, per_value, relu=relu)
    return dx, inverse * product, total


_batch_norm.defvjp(_forward, _backward)


def synchronise(
    mean: Channels, var: Channels, inverse: Channels, epsilon: float, axis_name: str | None
) -> tuple[Channels, Channels, Channels]:
    """The mean, biased variance, and one over the standard deviation of the whole batch, from those of each device's
    part.

    The variance is the mean of the variances and the variance of the means, in two exchanges: nothing cancels, at any
    mean.
    """
    if axis_name is None:
        return mean, var, inverse
    whole = average(mean, axis_name)
    var = average(var + jnp.square(mean - whole), axis_name)
    return whole, var, inverse_std(var, epsilon)


# --- the operations, as the engine computes them, and in JAX


def normalise_reference(x, mean, inverse, scale, bias, *, relu):
    y = (x.astype(scale.dtype) - mean) * (scale * inverse) + bias
    y = jax.nn.relu(y) if relu else y
    return [y.astype(x.dtype)]


def statistics_reference(x, *, epsilon):
    x = x.astype(accumulator(x.dtype))
    mean = jnp.mean(x, (0, 1, 2))
    var = jnp.mean(jnp.square(x - mean), (0, 1, 2))
    return [mean, var, inverse_std(var, epsilon)]


def passed(gradient, x, mean, inverse, scale, bias, *, relu):
    """A gradient where the ReLU passes it, and the centred map, both in the dtype of ``scale``."""
    centred, gradient = x.astype(scale.dtype) - mean, gradient.astype(scale.dtype)
    return jnp.where(centred * (scale * inverse) + bias > 0, gradient, 0) if relu else gradient, centred


def gradient_sums_reference(dy, x, *how, relu):
    gradient, centred = passed(dy, x, *how, relu=relu)
    return [jnp.sum(gradient, (0, 1, 2)), jnp.sum(centred * gradient, (0, 1, 2))]


def input_gradient_reference(dy, x, mean, inverse, scale, bias, per_centred, per_value, *, relu):
    gradient, centred = passed(dy, x, mean, inverse, scale, bias, relu=relu)
    return [(gradient * (scale * inverse) + centred * per_centred + per_value).astype(x.dtype)]


def _operation(
    name: str, reference: Callable[..., Sequence[Array]], outcomes: Callable[..., Sequence[ShapedArray]]
) -> Callable[..., Sequence[Array]]:
    by_engine = engine.operation(name, reference, outcomes)

    def call(*arrays: Array, **options) -> Sequence[Array]:
        if engine.applies(*arrays):
            return by_engine(*arrays, **options)
        with jax.named_scope(name.replace("_", " ")):
            return reference(*arrays, **options)

    return call


statistics = _operation("batch_norm_statistics", statistics_reference, lambda x, **_options: engine.vectors(3, x))
normalise = _operation("batch_norm", normalise_reference, lambda x, *_how, **_options: [engine.like(x)])
gradient_sums = _operation(
    "batch_norm_gradient_sums", gradient_sums_reference, lambda _dy, x, *_how, **_options: engine.vectors(2, x)
)
input_gradient = _operation(
    "batch_norm_input_gradient", input_gradient_reference, lambda _dy, x, *_how, **_options: [engine.like(x)]
)
