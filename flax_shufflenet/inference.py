"""A trained net for inference: batch normalisation folded into the convolutions, channel shuffles into their order.

``fuse`` works out once, in float64 NumPy, what the net computes in eval mode. Batch normalisation by running
statistics is a scale and a shift of a convolution's channels, so it becomes part of the kernel and the bias. A channel
shuffle only renames channels: instead of moving them, the kernels' rows and columns are put into the order in which
the channels lie. The channels that a basic block passes on are not even copied; they stay in the map that they were
computed in until a later branch reads them.
"""

import contextlib
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.layers import ConvBN, Linear, leaky_relu
from flax_shufflenet.model import ShuffleNetV2, average_pool, max_pool
from flax_shufflenet.ops import branch
from flax_shufflenet.ops.branch import Layer, Piece
from flax_shufflenet.ops.convolution import check_shape, conv2d
from flax_shufflenet.ops.linear import linear

FeatureMap = Float[Array, "n h w _"]
Images = Float[Array, "n h w 3"]
Channels = Int[np.ndarray, "_ 2"]
"""For each channel of a feature map: which of the stage's maps computed it, and which channel it is there."""

# On CPU a batch runs in blocks whose first map has this many positions, so that a block's maps stay in the cache:
# 32 images of 32x32. A batch of 128 runs 1.3 times as fast.
_BLOCK_POSITIONS = 32 * 32 * 32


# For a batch on CPU, XLA's older code generator and Eigen's matrix products; the newer ones are quicker to compile, and
# for one image alone. With these a batch of 128 takes 0.6 to 0.85 of the time.
_BATCH_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",  # there is none
}


@cache
def batch_options() -> dict[str, str | bool]:
    """What ``jax.jit`` is to compile a batch's inference with, as its ``compiler_options``: on CPU the options above
    that this version of XLA knows, elsewhere none."""
    known = {}
    if jax.default_backend() == "cpu":
        for name, value in _BATCH_OPTIONS.items():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
                known[name] = value
    return known


def fuse(model: ShuffleNetV2) -> "FusedNet":
    """The net in eval mode as one compiled function of the images, with the same outputs to rounding.

    It holds a copy of the weights: what becomes of ``model`` later does not change it. It computes in the model's
    dtype, whose weights are folded in float64 and rounded once.
    """
    return FusedNet(model.architecture, _fold_net(model))


class FusedNet:
    """A net for inference, called like the model that ``fuse`` made it from."""

    def __init__(self, architecture: Architecture, net: "_Net") -> None:
        self.architecture = architecture
        self._net = net
        self._run_one = jax.jit(partial(_run_anywhere, net))
        self._run_batch = jax.jit(partial(_run_anywhere, net), compiler_options=batch_options())

    def __reduce__(self) -> tuple[type["FusedNet"], tuple[Architecture, "_Net"]]:
        """For ``pickle``, which takes no compiled functions."""
        return FusedNet, (self.architecture, self._net)

    def __call__(self, images: Float[Array | np.ndarray, "n h w 3"]) -> Float[Array, "n out"]:
        """Class scores before the softmax, in the net's dtype; the features where there is no classifier.

        Compiles at the first batch of each shape. It may be part of a function that is compiled or exported.

        Raises:
            ValueError: ``images`` have another shape, or the architecture pools with a window that their size does not
                leave one value of.
        """
        # Within another jitted function, it is that one's options that count.
        alone = isinstance(images, Tracer) or images.shape[0] == 1
        return self._run_one(images) if alone else self._run_batch(images)


def _apply(layer: Layer, x: FeatureMap) -> Float[Array, "n oh ow cout"]:
    y = conv2d(x, jnp.asarray(layer.kernel), stride=layer.stride, groups=layer.groups)
    y = y.astype(layer.bias.dtype) + layer.bias
    if layer.relu:
        y = leaky_relu(y, layer.negative_slope) if layer.negative_slope else jax.nn.relu(y)
    return y.astype(x.dtype)


class _Branch(NamedTuple):
    """Convolutions in a row, which read these pieces of the maps that a stage has computed, one beside the other."""

    inputs: tuple[Piece, ...]
    convs: tuple[Layer, ...]

    def apply(self, maps: Sequence[FeatureMap]) -> Float[Array, "n oh ow cout"]:
        if branch.applies(maps, self.convs):
            return branch.run(maps, self.inputs, self.convs)
        parts = [maps[piece.map][..., piece.start : piece.stop] for piece in self.inputs]
        x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
        for conv in self.convs:
            x = _apply(conv, x)
        return x


class _Stage(NamedTuple):
    """The down block's two branches compute maps 0 and 1 from the maps of the stage before; each basic block's
    branch adds one map."""

    left: _Branch
    right: _Branch
    basics: tuple[_Branch, ...]


class _Net(NamedTuple):
    architecture: Architecture
    stem: Layer
    stages: tuple[_Stage, ...]
    last: _Branch
    """Without any convolution where the net ends after its last stage."""
    order: np.ndarray
    """For each feature, where in what ``last`` returns it is."""
    classifier: tuple[np.ndarray, np.ndarray | None] | None

    def apply(self, images: Images) -> Float[Array, "n out"]:
        x = _apply(self.stem, images)
        maps = [max_pool(x, ceil=self.architecture.stem_pool_ceil) if self.architecture.stem_pool else x]
        for stage in self.stages:
            maps = [stage.left.apply(maps), stage.right.apply(maps)]
            for basic in stage.basics:
                maps.append(basic.apply(maps))
        features = average_pool(self.last.apply(maps), self.architecture.pool_size)
        if not self.last.convs:
            features = features[:, self.order]
        if self.classifier is None:
            return features
        kernel, bias = self.classifier
        scores = linear(features, jnp.asarray(kernel))
        return scores if bias is None else scores + bias


def _run_anywhere(net: _Net, images: Images) -> Float[Array, "n out"]:
    check_shape(images, net.stem.kernel.shape[2])
    images = images.astype(net.stem.kernel.dtype)
    return lax.platform_dependent(images, cpu=partial(_run_in_blocks, net), default=net.apply)


def _run_in_blocks(net: _Net, images: Images) -> Float[Array, "n out"]:
    if not all(isinstance(size, int) for size in images.shape):  # exported for any batch or image size
        return net.apply(images)
    count, height, width, _ = images.shape
    shrinking = net.stem.stride * (2 if net.architecture.stem_pool else 1)
    block = max(1, _BLOCK_POSITIONS * shrinking**2 // max(1, height * width))
    if count <= block:
        return net.apply(images)
    in_blocks = count - count % block
    blocks = images[:in_blocks].reshape(-1, block, height, width, 3)
    outputs = lax.map(net.apply, blocks)
    outputs = outputs.reshape(in_blocks, outputs.shape[-1])
    return jnp.concatenate([outputs, net.apply(images[in_blocks:])]) if in_blocks < count else outputs


# --- folding, in NumPy


def _fold(unit: ConvBN, rows: np.ndarray | slice = slice(None), columns: np.ndarray | slice = slice(None)) -> Layer:
    """One convolution for a convolution and its batch normalisation, with its input channels (which a depthwise
    convolution does not have) and output channels in another order."""
    conv, bn = unit.conv, unit.bn
    arrays = (conv.kernel, bn.scale, bn.bias, bn.mean, bn.var)
    kernel, scale, bias, mean, var = (np.asarray(array[...], np.float64) for array in arrays)
    if conv.bias is not None:
        mean = mean - np.asarray(conv.bias[...], np.float64)
    factor = scale / np.sqrt(var + bn.epsilon)
    kernel, bias = kernel * factor, bias - mean * factor
    dtype = jnp.dtype(conv.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)  # as the net's batch normalisation adds it
    return Layer(
        kernel[:, :, rows][..., columns].astype(dtype),
        bias[columns].astype(wide),
        conv.stride,
        conv.groups,
        unit.relu,
        unit.negative_slope,
    )


def _fold_classifier(linear: Linear) -> tuple[np.ndarray, np.ndarray | None]:
    def copy(array: Array) -> np.ndarray:
        return np.asarray(array, np.float64).astype(linear.dtype)

    return copy(linear.kernel[...]), None if linear.bias is None else copy(linear.bias[...])


def _fold_net(model: ShuffleNetV2) -> _Net:
    architecture = model.architecture
    inputs = (Piece(0, 0, architecture.stem_width),)
    order = np.arange(architecture.stem_width)
    stages = []
    for down, *basics in model.stages:
        widths = [chain[-1].conv.kernel.shape[-1] for chain in (down.left, down.right, *(b.branch for b in basics))]
        reads = _channels_read(architecture, widths)
        columns, gathers = _lay_out(widths, reads)

        depthwise, pointwise = down.left
        left = _Branch(inputs, (_fold(depthwise, columns=order), _fold(pointwise, order, columns[0])))
        first, depthwise, pointwise = down.right
        right = _Branch(inputs, (_fold(first, order), _fold(depthwise), _fold(pointwise, columns=columns[1])))
        branches = []
        for block, (inputs, order), block_columns in zip(basics, gathers[:-1], columns[2:], strict=True):
            first, depthwise, pointwise = block.branch
            convs = (_fold(first, order), _fold(depthwise), _fold(pointwise, columns=block_columns))
            branches.append(_Branch(inputs, convs))
        stages.append(_Stage(left, right, tuple(branches)))
        inputs, order = gathers[-1]
    return _Net(
        architecture,
        _fold(model.stem),
        tuple(stages),
        _Branch(inputs, (_fold(model.last, order),) if architecture.last_width else ()),
        np.argsort(order),
        _fold_classifier(model.classifier) if architecture.num_classes else None,
    )


def _channels_read(architecture: Architecture, widths: Sequence[int]) -> list[Channels]:
    """The channels that each basic block's branch of a stage reads, and those that the stage returns.

    ``widths`` are those of the stage's maps: the down block's left and right, then one for each basic block.
    """

    def new(number: int) -> Channels:
        return np.stack([np.full(widths[number], number), np.arange(widths[number])], axis=1)

    groups = architecture.shuffle_groups
    channels = _joined([new(0), new(1)], architecture)
    passed = architecture.passed_width(len(channels))
    reads = []
    for number in range(2, len(widths)):
        if architecture.shuffle == "before":
            channels = _shuffled(channels, len(channels) // groups)
        reads.append(channels[passed:])
        channels = _joined([channels[:passed], new(number)], architecture)
    return [*reads, channels]


def _joined(parts: Iterable[Channels], architecture: Architecture) -> Channels:
    channels = np.concatenate(list(parts))
    if architecture.shuffle == "before":
        return channels
    groups = architecture.shuffle_groups
    return _shuffled(channels, groups if architecture.shuffle == "after" else len(channels) // groups)


def _shuffled(channels: Channels, groups: int) -> Channels:
    return channels.reshape(groups, -1, 2).swapaxes(0, 1).reshape(-1, 2)


def _lay_out(
    widths: Sequence[int], reads: Sequence[Channels]
) -> tuple[list[np.ndarray], list[tuple[tuple[Piece, ...], np.ndarray]]]:
    """An order of each map's channels in which every reader finds its own side by side.

    Every channel is read exactly once, so sorting a map's channels by their reader does it.

    Returns:
        For each map, its channels in that order; for each reader, the pieces that it reads, and which of its input
        channels it gets, one after the other.
    """
    reader = [np.zeros(width, int) for width in widths]
    for number, channels in enumerate(reads):
        for source, channel in channels:
            reader[source][channel] = number
    columns = [np.argsort(readers, kind="stable") for readers in reader]
    gathers = []
    for number, channels in enumerate(reads):
        pieces = []
        places = {(source, channel): place for place, (source, channel) in enumerate(channels.tolist())}
        order = []
        for source, readers in enumerate(reader):
            own = columns[source][readers[columns[source]] == number]
            if own.size:
                start = int(np.sum(readers < number))
                pieces.append(Piece(source, start, start + own.size))
                order += [places[source, channel] for channel in own.tolist()]
        gathers.append((tuple(pieces), np.array(order)))
    return columns, gathers
