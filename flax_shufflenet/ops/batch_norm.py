"""Batch normalisation by the batch's own statistics."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.rounding import inverse_std

Images = Float[Array, "n h w c"]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: Images, scale: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float, relu: bool
) -> tuple[Images, Float[Array, " c"], Float[Array, " c"]]:
    """``x`` normalised over n, h and w, then rectified if ``relu``, and the mean and biased variance it was
    normalised with.

    Two passes, since E[x^2] - E[x]^2 cancels: at a mean of 10,000 standard deviations it is wrong by a
    factor. Statistics are computed in the dtype of ``scale``; the result has the dtype of ``x``. The ReLU is part of
    it because its gradient is then found from ``x`` again, and nothing else needs to be kept or written out.
    """
    y, mean, var, _ = _normalise(x, scale, bias, epsilon, relu)
    return y, mean, var


@partial(jax.jit, static_argnums=(3, 4))
def _normalise(x, scale, bias, epsilon, relu):
    if engine.applies(x, scale, bias):
        return by_engine(x, scale, bias, epsilon=epsilon, relu=relu)
    with jax.named_scope("batch norm"):
        return reference(x, scale, bias, epsilon=epsilon, relu=relu)


def reference(x, scale, bias, *, epsilon, relu):
    """In JAX: the normalised images, mean, biased variance, and one over the standard deviation."""
    wide = x.astype(scale.dtype)
    mean = jnp.mean(wide, (0, 1, 2))
    var = jnp.mean(jnp.square(wide - mean), (0, 1, 2))
    inverse = inverse_std(var, epsilon)
    y = (wide - mean) * (scale * inverse) + bias
    y = jax.nn.relu(y) if relu else y
    return y.astype(x.dtype), mean, var, inverse


def _forward(x, scale, bias, epsilon, relu):
    y, mean, var, inverse = _normalise(x, scale, bias, epsilon, relu)
    return (y, mean, var), (x, scale, bias, mean, inverse)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(epsilon, relu, residuals, cotangents):
    if engine.applies(*residuals, *cotangents):
        return tuple(gradient_by_engine(*residuals, *cotangents, relu=relu))
    with jax.named_scope("batch norm gradient"):
        return gradient_reference(*residuals, *cotangents, relu=relu)


def gradient_reference(x, scale, bias, mean, inverse, dy, dmean, dvar, *, relu):
    """In JAX (Ioffe and Szegedy 2015, section 3): the gradients of images, scale and bias."""
    count = x.size // x.shape[-1]
    factor = scale * inverse
    centred, gradient = x.astype(scale.dtype) - mean, dy.astype(scale.dtype)
    gradient = jnp.where(centred * factor + bias > 0, gradient, 0) if relu else gradient
    dbias = jnp.sum(gradient, (0, 1, 2))
    dscale = jnp.sum(centred * gradient, (0, 1, 2)) * inverse
    per_centred = (2 * dvar - factor * inverse * dscale) / count
    per_value = (dmean - factor * dbias) / count
    dx = gradient * factor + centred * per_centred + per_value
    return dx.astype(x.dtype), dscale, dbias


by_engine = engine.operation("batch_norm", reference)
gradient_by_engine = engine.operation("batch_norm_gradient", gradient_reference)

batch_norm.defvjp(_forward, _backward)
