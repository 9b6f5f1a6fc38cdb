"""The seed's net as one would write it with Flax's own layers: what this project is compared with.

``nnx.Conv`` (grouped for depthwise), ``nnx.BatchNorm`` and ``nnx.Linear``, in NHWC. Attributes have the names of
``flax_shufflenet.ShuffleNetV2``, so that weights can be copied by name.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from flax_shufflenet import Architecture, ShuffleNetV2
from flax_shufflenet.weights import flat_arrays


class ConvBN(nnx.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        side: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu: bool = False,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            (side, side),
            strides=stride,
            padding=side // 2,
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(
            out_channels, momentum=0.9, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.relu = relu

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.bn(self.conv(x))
        return nnx.relu(x) if self.relu else x


def _shuffled(left: jax.Array, right: jax.Array) -> jax.Array:
    """Both halves side by side, their channels taking turns."""
    n, h, w, c = left.shape
    return jnp.concatenate([left, right], -1).reshape(n, h, w, 2, c).swapaxes(3, 4).reshape(n, h, w, 2 * c)


class BasicBlock(nnx.Module):
    def __init__(self, channels: int, **options) -> None:
        c = channels // 2
        self.branch = nnx.List(
            [
                ConvBN(c, c, relu=True, **options),
                ConvBN(c, c, side=3, groups=c, **options),
                ConvBN(c, c, relu=True, **options),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        passed, x = jnp.split(x, 2, axis=-1)
        for unit in self.branch:
            x = unit(x)
        return _shuffled(passed, x)


class DownBlock(nnx.Module):
    def __init__(self, in_channels: int, out_channels: int, **options) -> None:
        c = out_channels // 2
        self.left = nnx.List(
            [
                ConvBN(in_channels, in_channels, side=3, stride=2, groups=in_channels, **options),
                ConvBN(in_channels, c, **options),
            ]
        )
        self.right = nnx.List(
            [
                ConvBN(in_channels, c, **options),
                ConvBN(c, c, side=3, stride=2, groups=c, **options),
                ConvBN(c, c, **options),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        left, right = x, x
        for unit in self.left:
            left = unit(left)
        for unit in self.right:
            right = unit(right)
        return _shuffled(left, right)


class StockShuffleNetV2(nnx.Module):
    """The seed's widths and depths; of ``architecture`` nothing else is looked at. ``dtype`` is what it computes in;
    parameters and statistics are float32, and float64 only under float64."""

    def __init__(self, architecture: Architecture, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        dtypes = {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}
        options = {**dtypes, "rngs": rngs}
        width = architecture.stem_width
        self.stem = ConvBN(3, width, side=3, relu=True, **options)
        self.stages = nnx.List()
        for stage_width, blocks in zip(architecture.stage_widths, architecture.stage_blocks, strict=True):
            down = DownBlock(width, stage_width, **options)
            self.stages.append(nnx.List([down, *(BasicBlock(stage_width, **options) for _ in range(blocks))]))
            width = stage_width
        self.last = ConvBN(width, architecture.last_width, relu=True, **options)
        self.classifier = nnx.Linear(architecture.last_width, architecture.num_classes, **options)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """``rngs`` is what a train step gives each net; there is no dropout here to draw from it."""
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.classifier(jnp.mean(self.last(x), axis=(1, 2)))


def with_weights_of(model: ShuffleNetV2) -> StockShuffleNetV2:
    """The stock net with a model's weights and statistics; a batch count is the only thing it has no place for."""
    arrays = flat_arrays(model)
    dtype = model.stem.conv.dtype
    abstract = nnx.eval_shape(lambda: StockShuffleNetV2(model.architecture, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    filled = [(path, variable.replace(arrays[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))
