"""ShuffleNetV2 (Ma et al., ECCV 2018, https://arxiv.org/abs/1807.11164) as a Flax NNX module, in NHWC."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.layers import ConvBN, Dropout, Linear
from flax_shufflenet.ops import blocks
from flax_shufflenet.ops.units import Moments, Unit

FeatureMap = Float[Array, "n h w c"]
OtherMap = Float[Array, "n oh ow oc"]
"""A feature map whose height, width and channels may differ from the input's."""


def channel_shuffle(x: FeatureMap, groups: int) -> FeatureMap:
    """Interleaves ``groups`` runs of channels: [1 2 3 a b c] becomes [1 a 2 b 3 c] (paper, section 2)."""
    n, h, w, c = x.shape
    with jax.named_scope("shuffle"):
        return x.reshape(n, h, w, groups, c // groups).swapaxes(3, 4).reshape(n, h, w, c)


def channel_split(x: FeatureMap, first: int) -> tuple[Float[Array, "n h w first"], Float[Array, "n h w rest"]]:
    """The first ``first`` channels, and the rest (paper, figure 3c)."""
    with jax.named_scope("split"):
        return x[..., :first], x[..., first:]


def channel_concat(left: Float[Array, "n h w left"], right: Float[Array, "n h w right"]) -> Float[Array, "n h w both"]:
    """All channels of one branch, then all of the other (paper, figure 3)."""
    with jax.named_scope("concat"):
        return jnp.concatenate([left, right], axis=-1)


def _unshuffle(x: FeatureMap, groups: int) -> FeatureMap:
    """The inverse of interleaving g runs is interleaving c / g runs: with 2, even channels first, then odd."""
    return channel_shuffle(x, x.shape[-1] // groups)


def _shuffle_after(x: FeatureMap, shuffle: str, groups: int) -> FeatureMap:
    """What a block does with its result under ``Architecture.shuffle``."""
    if shuffle == "after":
        return channel_shuffle(x, groups)
    return _unshuffle(x, groups) if shuffle == "reverse" else x


def _pointwise(in_channels: int, out_channels: int, **options) -> ConvBN:
    return ConvBN(in_channels, out_channels, kernel_size=1, **options)


def _depthwise(channels: int, kernel_size: int, stride: int, **options) -> ConvBN:
    return ConvBN(channels, channels, kernel_size=kernel_size, stride=stride, groups=channels, **options)


def _chain(units: Iterable[ConvBN], x: FeatureMap) -> OtherMap:
    for unit in units:
        x = unit(x)
    return x


def _units_for_engine(block: "BasicBlock | DownBlock", layers: Sequence[ConvBN], x: FeatureMap) -> list[Unit] | None:
    """What the CPU engine computes this block with; None where it has not what the block does: halves, shuffled in two
    groups after it, and layers that nobody changed and that normalise alike.

    Not while ``nnx.capture`` wants what each layer returns.
    """
    as_in_the_paper = block.halves and block.groups == 2 and block.shuffle == "after"
    if not as_in_the_paper or hasattr(block, "__captures__") or not all(layer.is_plain for layer in layers):
        return None
    as_made = tuple(layer.form for layer in layers) == block.forms and x.shape[3:] == (block.channels,)
    if not as_made or len({(layer.bn.epsilon, layer.bn.axis_name) for layer in layers}) > 1:
        return None
    units = [layer.unit for layer in layers]
    return units if blocks.applies(x, *jax.tree.leaves(units)) else None


def _track(units: Sequence[ConvBN], moments: Sequence[Moments], maps: Sequence[jax.Array]) -> None:
    """``maps`` are of the sizes that the units' maps have."""
    for unit, (mean, var), x in zip(units, moments, maps, strict=True):
        if not unit.bn.use_running_average:
            unit.bn.track(mean, var, x)


class BasicBlock(nnx.Module):
    """Stride 1: one part of the channels passes untouched, the other through the branch (figure 3c)."""

    def __init__(self, channels: int, architecture: Architecture, **options) -> None:
        self.channels = channels
        self.passed = architecture.passed_width(channels)
        self.halves = 2 * self.passed == channels
        self.groups = architecture.shuffle_groups
        self.shuffle = architecture.shuffle
        width = channels - self.passed
        self.branch = nnx.List(
            [
                _pointwise(width, width, relu=True, **options),
                _depthwise(width, architecture.basic_kernel, stride=1, **options),
                _pointwise(width, width, relu=True, **options),
            ]
        )
        self.forms = tuple(unit.form for unit in self.branch)

    def __call__(self, x: FeatureMap) -> FeatureMap:
        if units := _units_for_engine(self, self.branch, x):
            bn = self.branch[0].bn
            found = blocks.basic_block(x, tuple(units), bn.epsilon, bn.axis_name)
            y, moments = found
            _track(self.branch, moments, [x, x, x])
            return y
        if self.shuffle == "before":
            x = _unshuffle(x, self.groups)
        passed, x = channel_split(x, self.passed)
        return _shuffle_after(channel_concat(passed, _chain(self.branch, x)), self.shuffle, self.groups)


class DownBlock(nnx.Module):
    """Stride 2: all channels go through both branches, which together set the width (figure 3d)."""

    def __init__(self, in_channels: int, out_channels: int, architecture: Architecture, **options) -> None:
        half = out_channels // 2
        left = in_channels if architecture.down_left == "input" else half
        middle = in_channels if architecture.down_middle == "input" else half
        relu = architecture.down_relu
        self.channels = in_channels
        self.groups = architecture.shuffle_groups
        self.shuffle = architecture.shuffle
        self.halves = 2 * left == out_channels
        self.left = nnx.List(
            [
                _depthwise(in_channels, architecture.down_kernel, stride=2, **options),
                _pointwise(in_channels, left, relu=relu, **options),
            ]
        )
        self.right = nnx.List(
            [
                _pointwise(in_channels, middle, relu=relu, **options),
                _depthwise(middle, architecture.down_kernel, stride=2, **options),
                _pointwise(middle, out_channels - left, relu=relu, **options),
            ]
        )
        self.forms = tuple(unit.form for unit in [*self.left, *self.right])

    def __call__(self, x: FeatureMap) -> OtherMap:
        layers = [*self.left, *self.right]
        if units := _units_for_engine(self, layers, x):
            left, right = tuple(units[: len(self.left)]), tuple(units[len(self.left) :])
            bn = layers[0].bn
            found = blocks.down_block(x, left, right, self.right[0].relu, bn.epsilon, bn.axis_name)
            y, moments = found
            _track(layers, moments, [y, y, x, y, y])
            return y
        return _shuffle_after(channel_concat(_chain(self.left, x), _chain(self.right, x)), self.shuffle, self.groups)


class ShuffleNetV2(nnx.Module):
    """The whole net: stem, stages, a last 1x1 convolution, average pooling and a linear classifier.

    Architectures may leave out the last convolution and the classifier.

    Args:
        architecture: which net, for instance ``flax_shufflenet.seed(net_size=1.0)``.
        dtype: what it computes in: float32, bfloat16, float16 or float64 (which needs ``jax_enable_x64``). Parameters
            and batch statistics are float32, and float64 only under float64.
        rngs: the source of initial weights, drawn from the seed's distributions.

    Raises:
        ValueError: another dtype, or float64 while JAX runs without ``jax_enable_x64``.
    """

    def __init__(self, architecture: Architecture, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(dtype)
        if dtype.name not in ("float16", "bfloat16", "float32", "float64"):
            raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, not {dtype}")
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError("float64 needs jax.config.update('jax_enable_x64', True)")
        param_dtype = jnp.promote_types(dtype, jnp.float32)
        linear_options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        options = {
            **linear_options,
            "conv_bias": architecture.conv_bias,
            "negative_slope": architecture.negative_slope,
            "bn_epsilon": architecture.bn_epsilon,
        }
        self.architecture = architecture
        self.stem = ConvBN(
            3,
            architecture.stem_width,
            kernel_size=architecture.stem_kernel,
            stride=architecture.stem_stride,
            relu=architecture.stem_relu,
            **options,
        )
        self.stages = nnx.List()
        width = architecture.stem_width
        for stage_width, count in zip(architecture.stage_widths, architecture.stage_blocks, strict=True):
            down = DownBlock(width, stage_width, architecture, **options)
            basics = [BasicBlock(stage_width, architecture, **options) for _ in range(count)]
            self.stages.append(nnx.List([down, *basics]))
            width = stage_width
        if architecture.last_width:
            self.last = _pointwise(width, architecture.last_width, relu=True, **options)
        self.dropout = Dropout(architecture.dropout)
        if architecture.num_classes:
            self.classifier = Linear(
                architecture.features_width, architecture.num_classes, bias=architecture.head_bias, **linear_options
            )

    def stage_features(self, images: Float[Array, "n h w 3"]) -> list[OtherMap]:
        """What each stage returns, the first stage first: the feature maps that a detector reads.

        The last convolution is no stage; where a net has one, ``model.last`` of the last map is its map.
        """
        x = self.stem(images)
        if self.architecture.stem_pool:
            x = max_pool(x, ceil=self.architecture.stem_pool_ceil)
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps

    def features(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n features"]:
        """What the classifier sees: the channels of the last convolution, or of the last stage where there is none,
        averaged over the image.

        Raises:
            ValueError: the architecture pools with a window that this image size does not leave one value of.
        """
        x = self.stage_features(images)[-1]
        return average_pool(self.last(x) if self.architecture.last_width else x, self.architecture.pool_size)

    def __call__(self, images: Float[Array, "n h w 3"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "n out"]:
        """Class scores before the softmax, in the net's dtype; the features where there is no classifier.

        ``images`` are normalised as in training, of any height and width of at least 1. In train mode
        (``model.train()``, the mode of a new net) this also updates the running statistics, and a net with
        dropout needs ``rngs``.
        """
        features = self.dropout(self.features(images), rngs=rngs)
        return self.classifier(features) if self.architecture.num_classes else features


def max_pool(x: FeatureMap, *, ceil: bool = False) -> OtherMap:
    """PyTorch's 3x3 max-pool of stride 2 with padding 1; if ``ceil``, with ``padding=0, ceil_mode=True``.

    Raises:
        ValueError: ``ceil``, and a map of one row or column, of which that leaves nothing.
    """
    # NumPy's: JAX finds the gradient of a pool only where it can see the first value while it traces.
    lowest = np.array(-np.inf, x.dtype)
    # Under ceil_mode an odd side's last window ends at its last pixel, and an even side's one pixel later.
    sides = (0, 1) if ceil else (1, 1)
    if ceil and 1 in x.shape[1:3]:
        raise ValueError(f"the stem's max-pool leaves nothing of a map of {x.shape[1]}x{x.shape[2]}; use larger images")
    padding = ((0, 0), sides, sides, (0, 0))
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def average_pool(x: FeatureMap, window: int) -> Float[Array, "n c"]:
    if window:
        if not all(window <= size < 2 * window for size in x.shape[1:3]):
            raise ValueError(
                f"this net averages {window}x{window} values and needs an image size that leaves one average; "
                f"{x.shape[1]}x{x.shape[2]} values are left"
            )
        x = x[:, :window, :window]  # PyTorch drops the rows and columns that do not fill a window
    # Averages of bfloat16 are taken in float32.
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)
