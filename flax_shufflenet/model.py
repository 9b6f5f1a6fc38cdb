"""ShuffleNetV2 (Ma et al., ECCV 2018, https://arxiv.org/abs/1807.11164) as a Flax NNX module, in NHWC."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.layers import ConvBN, Linear

FeatureMap = Float[Array, "n h w c"]


def channel_shuffle(x: FeatureMap, groups: int) -> FeatureMap:
    """Interleaves ``groups`` runs of channels: [1 2 3 a b c] becomes [1 a 2 b 3 c] (paper, section 2)."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w, groups, c // groups).swapaxes(3, 4).reshape(n, h, w, c)


def channel_split(x: FeatureMap, first: int) -> tuple[FeatureMap, FeatureMap]:
    """The first ``first`` channels, and the rest (paper, figure 3c)."""
    return x[..., :first], x[..., first:]


def _pointwise(in_channels: int, out_channels: int, **options) -> ConvBN:
    return ConvBN(in_channels, out_channels, kernel_size=1, **options)


def _depthwise(channels: int, stride: int, **options) -> ConvBN:
    return ConvBN(channels, channels, kernel_size=3, stride=stride, groups=channels, **options)


def _chain(units: nnx.List, x: FeatureMap) -> FeatureMap:
    for unit in units:
        x = unit(x)
    return x


class BasicBlock(nnx.Module):
    """Stride 1: one part of the channels passes untouched, the other through the branch (figure 3c)."""

    def __init__(self, channels: int, architecture: Architecture, **options) -> None:
        self.passed = architecture.passed_width(channels)
        self.groups = architecture.shuffle_groups
        width = channels - self.passed
        self.branch = nnx.List(
            [
                _pointwise(width, width, relu=True, **options),
                _depthwise(width, stride=1, **options),
                _pointwise(width, width, relu=True, **options),
            ]
        )

    def __call__(self, x: FeatureMap) -> FeatureMap:
        passed, x = channel_split(x, self.passed)
        x = jnp.concatenate([passed, _chain(self.branch, x)], axis=-1)
        return channel_shuffle(x, self.groups)


class DownBlock(nnx.Module):
    """Stride 2: all channels go through both branches, which together set the width (figure 3d).

    The paper has ReLUs after the 1x1 convolutions here; the PyTorch seed has none.
    """

    def __init__(self, in_channels: int, out_channels: int, architecture: Architecture, **options) -> None:
        half = out_channels // 2
        self.groups = architecture.shuffle_groups
        self.left = nnx.List([_depthwise(in_channels, stride=2, **options), _pointwise(in_channels, half, **options)])
        self.right = nnx.List(
            [
                _pointwise(in_channels, half, **options),
                _depthwise(half, stride=2, **options),
                _pointwise(half, half, **options),
            ]
        )

    def __call__(self, x: FeatureMap) -> FeatureMap:
        x = jnp.concatenate([_chain(self.left, x), _chain(self.right, x)], axis=-1)
        return channel_shuffle(x, self.groups)


class ShuffleNetV2(nnx.Module):
    """The whole net: stem, stages, a last 1x1 convolution, global average pooling and a linear classifier.

    Args:
        architecture: which net, for instance ``flax_shufflenet.seed(net_size=1.0)``.
        dtype: what it computes in: float32, bfloat16 or float64 (which needs ``jax_enable_x64``). Parameters
            and batch statistics are float32, and float64 only under float64.
        rngs: the source of initial weights, drawn from the seed's distributions.

    Raises:
        ValueError: float64 while JAX runs without ``jax_enable_x64``.
    """

    def __init__(self, architecture: Architecture, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(dtype)
        if dtype == jnp.float64 and not jax.config.read("jax_enable_x64"):
            raise ValueError("float64 needs jax.config.update('jax_enable_x64', True)")
        param_dtype = jnp.promote_types(dtype, jnp.float32)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.architecture = architecture
        self.stem = ConvBN(3, architecture.stem_width, kernel_size=3, relu=True, **options)
        self.stages = nnx.List()
        width = architecture.stem_width
        for stage_width, blocks in zip(architecture.stage_widths, architecture.stage_blocks, strict=True):
            stage = nnx.List([DownBlock(width, stage_width, architecture, **options)])
            stage.extend(BasicBlock(stage_width, architecture, **options) for _ in range(blocks))
            self.stages.append(stage)
            width = stage_width
        self.last = _pointwise(width, architecture.last_width, relu=True, **options)
        self.classifier = Linear(architecture.last_width, architecture.num_classes, **options)

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n classes"]:
        """Class scores before the softmax, in the net's dtype.

        ``images`` are normalised as in training, of any height and width of at least 1. In train mode
        (``model.train()``, the mode of a new net) this also updates the running statistics.
        """
        x = self.stem(images)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        x = self.last(x)
        # Averages of bfloat16 are taken in float32.
        features = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return self.classifier(features)
