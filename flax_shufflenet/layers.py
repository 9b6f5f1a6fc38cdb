"""Convolution, batch normalisation and linear layers with PyTorch's semantics, in NHWC."""

from types import EllipsisType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_shufflenet import initializers
from flax_shufflenet.ops.batch_norm import batch_norm
from flax_shufflenet.ops.convolution import conv2d
from flax_shufflenet.ops.divided import own_rows, whole_count
from flax_shufflenet.ops.linear import linear
from flax_shufflenet.ops.rounding import inverse_std
from flax_shufflenet.ops.units import Unit


class Conv(nnx.Module):
    """``torch.nn.Conv2d(padding=(kernel_size - 1) // 2)``; its kernel is HWIO.

    ``dtype`` is what it computes in; the kernel is kept in ``param_dtype``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        self.kernel = nnx.Param(initializers.kaiming_normal(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(initializers.constant(0, (out_channels,), param_dtype)) if bias else None
        self.stride = stride
        self.groups = groups
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow cout"]:
        kernel = self.kernel[...].astype(self.dtype)
        x = conv2d(x.astype(self.dtype), kernel, stride=self.stride, groups=self.groups)
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class BatchNorm(nnx.Module):
    """``torch.nn.BatchNorm2d`` over the last axis.

    Three things differ from ``flax.nnx.BatchNorm``: the running variance is the unbiased one
    (n / (n - 1)), the batch variance is computed in two passes, and batches are counted. Statistics and
    parameters stay in ``param_dtype``; the result has the input's dtype.

    Under ``jax.shard_map``, ``axis_name`` is the mesh axis over which the batch is divided, and the statistics are
    those of the whole batch, as ``torch.nn.SyncBatchNorm``'s are; with None, those of this device's part of it.
    ``nnx.view(model, axis_name=...)`` sets it.
    """

    momentum = 0.1

    def __init__(self, channels: int, *, epsilon: float = 1e-5, param_dtype: DTypeLike) -> None:
        self.epsilon = epsilon
        self.axis_name: str | None = None
        constant = initializers.constant
        self.scale = nnx.Param(constant(1, (channels,), param_dtype))
        self.bias = nnx.Param(constant(0, (channels,), param_dtype))
        self.mean = nnx.BatchStat(constant(0, (channels,), param_dtype))
        self.var = nnx.BatchStat(constant(1, (channels,), param_dtype))
        self.num_batches_tracked = nnx.BatchStat(constant(0, (), jnp.int32))
        self.use_running_average = False

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalises with the batch's statistics in train mode, with the running ones in eval mode.

        Raises:
            ValueError: one value per channel in train mode (as PyTorch does: its variance is undefined).
        """
        if not self.use_running_average:
            return self._normalise_by_batch(x, relu=False)
        scale, bias = self.scale[...], self.bias[...]
        factor = scale * inverse_std(self.var[...], self.epsilon)
        return ((x.astype(scale.dtype) - self.mean[...]) * factor + bias).astype(x.dtype)

    def with_relu(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The ReLU of the normalised values; in train mode at less cost than one after the other."""
        return jax.nn.relu(self(x)) if self.use_running_average else self._normalise_by_batch(x, relu=True)

    def _normalise_by_batch(self, x: Float[Array, "n h w c"], *, relu: bool) -> Float[Array, "n h w c"]:
        found = batch_norm(x, self.scale[...], self.bias[...], self.epsilon, relu, self.axis_name)
        y, mean, var = found
        self.track(mean, var, x)
        return y

    def track(self, mean: Float[Array, " c"], var: Float[Array, " c"], x: Float[Array, "n h w _"]) -> None:
        """Takes the mean and biased variance of a batch into the running statistics; ``x`` has as many rows, columns
        and images as the map that they are of.

        Raises:
            ValueError: one value per channel.
        """
        count = whole_count(x.size // x.shape[-1], self.axis_name)
        if count < 2:
            raise ValueError(f"BatchNorm needs more than one value per channel in train mode, got {x.shape}")
        mean, unbiased_var = jax.lax.stop_gradient((mean, var * (count / (count - 1))))
        # Assigning to [...] compares shardings first, which takes a fifth of the time to trace a train step.
        self.mean.set_value((1 - self.momentum) * self.mean[...] + self.momentum * mean)
        self.var.set_value((1 - self.momentum) * self.var[...] + self.momentum * unbiased_var)
        self.num_batches_tracked.set_value(self.num_batches_tracked[...] + 1)

    def set_view(self, use_running_average: bool | None = None, axis_name: str | EllipsisType | None = ...) -> None:
        """Lets ``nnx.view(model, use_running_average=..., axis_name=...)`` switch this layer."""
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if not isinstance(axis_name, EllipsisType):  # None takes the name off
            self.axis_name = axis_name


class Dropout(nnx.Module):
    """``nnx.Dropout`` of a batch that may be divided among devices: ``axis_name`` is as in ``BatchNorm``, and what is
    dropped of the whole batch does not depend on the number of devices."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.axis_name: str | None = None
        self.deterministic = False

    def __call__(self, x: Float[Array, "n c"], *, rngs: nnx.Rngs | None) -> Float[Array, "n c"]:
        """Draws from ``rngs.dropout`` in train mode.

        Raises:
            ValueError: there are no ``rngs``, and there is something to drop.
        """
        if self.deterministic or not self.rate:
            return x
        if rngs is None:
            raise ValueError("a net with dropout needs rngs in train mode")
        whole = (whole_count(len(x), self.axis_name), *x.shape[1:])
        kept = own_rows(jax.random.bernoulli(rngs.dropout(), 1 - self.rate, whole), self.axis_name)
        return jnp.where(kept, x / (1 - self.rate), 0)

    def set_view(self, deterministic: bool | None = None, axis_name: str | EllipsisType | None = ...) -> None:
        """Lets ``nnx.view(model, deterministic=..., axis_name=...)`` switch this layer."""
        if deterministic is not None:
            self.deterministic = deterministic
        if not isinstance(axis_name, EllipsisType):
            self.axis_name = axis_name


def leaky_relu(x: Float[Array, "*shape"], negative_slope: float) -> Float[Array, "*shape"]:
    """``x`` above zero, ``negative_slope * x`` elsewhere; at zero its gradient is the slope, as PyTorch's is."""
    return jnp.where(x > 0, x, negative_slope * x)


class ConvBN(nnx.Module):
    """Convolution, batch normalisation and, where asked for, ReLU or, with a slope, LeakyReLU: the unit that every
    block is made of."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu: bool = False,
        negative_slope: float = 0.0,
        conv_bias: bool = False,
        bn_epsilon: float = 1e-5,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            groups=groups,
            bias=conv_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = BatchNorm(out_channels, epsilon=bn_epsilon, param_dtype=param_dtype)
        self.relu = relu
        self.negative_slope = negative_slope

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow cout"]:
        x = self.conv(x)
        if not self.relu:
            return self.bn(x)
        return leaky_relu(self.bn(x), self.negative_slope) if self.negative_slope else self.bn.with_relu(x)

    @property
    def is_plain(self) -> bool:
        """Without the bias and the slope that some architectures have, and of no class but this module's."""
        classes = (type(self), type(self.conv), type(self.bn))
        return classes == (ConvBN, Conv, BatchNorm) and self.conv.bias is None and not self.negative_slope

    @property
    def form(self) -> tuple[bool, int, int, tuple[int, ...]]:
        """Whether a ReLU follows; stride, groups and the kernel's shape."""
        return self.relu, self.conv.stride, self.conv.groups, self.conv.kernel.get_value().shape

    @property
    def unit(self) -> Unit:
        """What it computes with; in eval mode, with its running statistics."""
        bn = self.bn
        running = (bn.mean[...], bn.var[...]) if bn.use_running_average else (None, None)
        return Unit(self.conv.kernel[...].astype(self.conv.dtype), bn.scale[...], bn.bias[...], *running)


class Linear(nnx.Module):
    """``torch.nn.Linear`` with a kernel of [in, out]; computes in ``dtype``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(initializers.normal(rngs.params(), (in_features, out_features), 0.01, param_dtype))
        self.bias = nnx.Param(initializers.constant(0, (out_features,), param_dtype)) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n features"]) -> Float[Array, "n out"]:
        x = linear(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)
