"""The arithmetic of ShuffleNetV2, computed the way each platform is fast at.

``conv2d``, ``linear`` and ``batch_norm`` are the only doors. GPU and TPU lower to XLA's own convolution.
XLA's CPU backend has no fast path for depthwise convolutions, for three input channels, for the kernel gradient
of a 1x1 convolution, or for sums over all but the channels, so on CPU these are written out as shifted slices and
matrix products.
Which of the two runs is decided when the program is lowered for a platform, so one traced function serves all.
"""

import math
import operator
from collections.abc import Callable, Iterable
from functools import partial, reduce, wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.rounding import inverse_std

Images = Float[Array, "n h w c"]
Kernel = Float[Array, "kh kw cin cout"]

# A sum over more than _MANY_ROWS values a channel adds up at most _MOST_BLOCKS at once on CPU, until no more than
# _FEW_ROWS are left; see _sum_over_images.
_MANY_ROWS = 256
_MOST_BLOCKS = 16
_FEW_ROWS = 64

# Up to this many input channels, one fusion of scalar-times-vector products beats XLA's convolution on CPU.
_FEW_CHANNELS = 4


@partial(jax.jit, static_argnames=("stride", "groups"))
def conv2d(x: Images, kernel: Kernel, *, stride: int = 1, groups: int = 1) -> Float[Array, "n oh ow cout"]:
    """PyTorch's ``conv2d`` with ``padding=(k - 1) // 2``, in NHWC, without bias.

    ``x`` and ``kernel`` have one float dtype, which is the result's; bfloat16 accumulates in float32.
    ``kernel`` is HWIO with ``cin = c / groups``; kernels are square with an odd side. Differentiable in
    reverse mode.
    """
    return _conv2d(x, kernel, stride, groups)


class _Formulation(NamedTuple):
    """A convolution and its two gradients, as functions of (x, kernel, [dy,] stride); the name is for profiles."""

    name: str
    forward: Callable
    input_gradient: Callable
    kernel_gradient: Callable


def _cpu_formulation(x, kernel, stride, groups) -> _Formulation | None:
    if groups == 1 and kernel.shape[:2] == (1, 1) and stride == 1:
        return _Formulation("pointwise", _pointwise, _pointwise_input_gradient, _pointwise_kernel_gradient)
    if groups == x.shape[-1] == kernel.shape[-1] and stride <= kernel.shape[0]:
        return _Formulation("depthwise", _depthwise, _depthwise_input_gradient, _depthwise_kernel_gradient)
    if groups == 1 and x.shape[-1] <= _FEW_CHANNELS:
        return _Formulation("stem", _few_channels, _few_channels_input_gradient, _few_channels_kernel_gradient)
    return None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x, kernel, stride, groups):
    on_cpu = _cpu_formulation(x, kernel, stride, groups)
    if on_cpu and on_cpu.name in _ENGINES and engine.applies(x, kernel):
        with jax.named_scope(on_cpu.name):
            return _ENGINES[on_cpu.name].forward(x, kernel, stride=stride)[0]
    return _conv2d_by_xla(x, kernel, stride, groups)


def _conv2d_by_xla(x, kernel, stride, groups):
    native = partial(_native_conv, stride=stride, groups=groups)
    on_cpu = _cpu_formulation(x, kernel, stride, groups)
    if on_cpu is None:
        return native(x, kernel)
    with jax.named_scope(on_cpu.name):
        return lax.platform_dependent(x, kernel, cpu=partial(on_cpu.forward, stride=stride), default=native)


def _conv2d_forward(x, kernel, stride, groups):
    return _conv2d(x, kernel, stride, groups), (x, kernel)


# Traced once for all blocks of one shape, as conv2d and batch normalisation are: half of the time that tracing takes.
@partial(jax.jit, static_argnums=(0, 1))
def _conv2d_backward(stride, groups, residuals, dy):
    x, kernel = residuals
    on_cpu = _cpu_formulation(x, kernel, stride, groups)
    if on_cpu and on_cpu.name in _ENGINES and engine.applies(x, kernel):
        by_engine = _ENGINES[on_cpu.name]
        with jax.named_scope(f"{on_cpu.name} input gradient"):
            dx = by_engine.input_gradient(x, kernel, dy, stride=stride)[0]
        with jax.named_scope(f"{on_cpu.name} kernel gradient"):
            return dx, by_engine.kernel_gradient(x, kernel, dy, stride=stride)[0]
    return _conv2d_backward_by_xla(x, kernel, dy, stride, groups)


def _conv2d_backward_by_xla(x, kernel, dy, stride, groups):
    on_cpu = _cpu_formulation(x, kernel, stride, groups)

    def native_gradients(x, kernel, dy):
        return jax.vjp(partial(_native_conv, stride=stride, groups=groups), x, kernel)[1](dy)

    if on_cpu is None:
        return native_gradients(x, kernel, dy)

    def cpu_gradients(x, kernel, dy):
        with jax.named_scope(f"{on_cpu.name} input gradient"):
            dx = on_cpu.input_gradient(x, kernel, dy, stride=stride)
        with jax.named_scope(f"{on_cpu.name} kernel gradient"):
            return dx, on_cpu.kernel_gradient(x, kernel, dy, stride=stride)

    return lax.platform_dependent(x, kernel, dy, cpu=cpu_gradients, default=native_gradients)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _groups(x, kernel):
    return x.shape[-1] // kernel.shape[2]


def _forward_by_xla(x, kernel, *, stride):
    return [_conv2d_by_xla(x, kernel, stride, _groups(x, kernel))]


def _input_gradient_by_xla(x, kernel, dy, *, stride):
    return [_conv2d_backward_by_xla(x, kernel, dy, stride, _groups(x, kernel))[0]]


def _kernel_gradient_by_xla(x, kernel, dy, *, stride):
    return [_conv2d_backward_by_xla(x, kernel, dy, stride, _groups(x, kernel))[1]]


_ENGINES = {
    "depthwise": _Formulation(
        "depthwise",
        engine.operation("depthwise", _forward_by_xla),
        engine.operation("depthwise_input_gradient", _input_gradient_by_xla),
        engine.operation("depthwise_kernel_gradient", _kernel_gradient_by_xla),
    ),
    "stem": _Formulation(
        "stem",
        engine.operation("stem", _forward_by_xla),
        _input_gradient_by_xla,  # wanted only for gradients with respect to images
        engine.operation("stem_kernel_gradient", _kernel_gradient_by_xla),
    ),
}


def _native_conv(x, kernel, *, stride, groups):
    # Explicit padding: "SAME" pads (0, 1) where PyTorch pads (1, 1) at stride 2 on even sizes.
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Sums of bfloat16 products are kept in float32."""
    return jnp.promote_types(dtype, jnp.float32)


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(operator.add, terms)


def _pairwise_sum(terms: Iterable[Array]) -> Array:
    """Neighbours first, then neighbours of these: with n terms, the rounding of log2(n) sums instead of n.

    Of one shape and dtype. Here, and where the terms are cut out, ``lax`` itself is called: there are thousands of
    these sums in a train step, and tracing them through ``jnp`` takes thrice as long.
    """
    sums = list(terms)
    while len(sums) > 1:
        pairs = [lax.add(*sums[i : i + 2]) for i in range(0, len(sums) - 1, 2)]
        sums = pairs + sums[2 * len(pairs) :]
    return sums[0]


def _sum_over_images(term: Callable[..., Array], *images: Float[Array, "n h w *c"]) -> Float[Array, " *c"]:
    """``term(*images)``, an elementwise function, summed over n, h and w; its values have the accumulator's dtype.

    XLA's CPU backend writes out what it is to sum and reads it again. Here blocks of rows are added up in the same
    pass that computes them. Adding up blocks of blocks also keeps the float32 error small; the last few rows are left
    to a matrix product in double. One row alone must not be left: its product would be none, and XLA would add the
    blocks up again for every value of the images that the sum is used for.
    """

    channels = images[0].shape[3:]

    def in_blocks(*images: Float[Array, "n h w *c"]) -> Float[Array, " *c"]:
        count = _block_count(images[0].shape[1], _MOST_BLOCKS // 4)
        size = images[0].shape[1] // count
        blocks = ([lax.slice_in_dim(x, i * size, (i + 1) * size, axis=1) for x in images] for i in range(count))
        sums = _pairwise_sum(term(*block) for block in blocks)
        sums = sums.reshape(-1, *channels)
        # Neighbours are added up, and each device's rows apart, so that a divided batch stays divided.
        parts = max(1, jax.sharding.get_abstract_mesh().size)
        parts = parts if len(sums) % parts == 0 else 1
        while (rows := len(sums) // parts) > _FEW_ROWS:
            count = _block_count(rows, min(_MOST_BLOCKS, rows - 1))
            if count == 1:
                break
            neighbours = sums.reshape(-1, count, *channels)
            sums = _pairwise_sum(lax.index_in_dim(neighbours, i, axis=1, keepdims=False) for i in range(count))
        return _sum_in_double(sums)

    def at_once(*images: Float[Array, "n h w *c"]) -> Float[Array, " *c"]:
        return jnp.sum(term(*images), (0, 1, 2))

    if math.prod(images[0].shape[:3]) <= _MANY_ROWS:
        return at_once(*images)
    return lax.platform_dependent(*images, cpu=in_blocks, default=at_once)


def _written_out(function: Callable[..., Array]) -> Callable[..., Array]:
    """``function``, between whose arguments and outcome and the rest of the program XLA fuses nothing: it does not
    inline it. What it would compute again for each of many readers is so computed once."""

    @wraps(function)
    def outlined(*arrays: Array, **options) -> Array:
        def inlined_within(*arrays: Array) -> Array:
            with set_xla_metadata(inlineable=None):
                return function(*arrays, **options)

        with set_xla_metadata(inlineable="false"):
            return jax.jit(inlined_within)(*arrays)

    return outlined


@_written_out  # for the readers of a sum, who would each convert it to float32 again, for every value of theirs
def _sum_in_double(rows: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """Rounded once, as PyTorch's own: its CPU kernels keep batch normalisation's sums in double."""
    with jax.enable_x64(True):
        ones = lax.full(rows.shape[:1], 1, jnp.float64)
        sums = lax.dot(ones, lax.convert_element_type(rows, jnp.float64), dimension_numbers=(((0,), (0,)), ((), ())))
        return lax.convert_element_type(sums, rows.dtype)


def _block_count(length: int, most: int) -> int:
    """The most blocks, all of one size, that ``length`` can be cut into."""
    return max(count for count in range(1, most + 1) if length % count == 0)


# --- pointwise: a matrix product over the last axis


def _pointwise(x, kernel, *, stride=1):
    return jnp.dot(x, kernel[0, 0], preferred_element_type=_accumulator(x.dtype)).astype(x.dtype)


def _pointwise_input_gradient(x, kernel, dy, *, stride=1):
    return _pointwise(dy, kernel.swapaxes(2, 3))


# A product adds up its thousands of rows one after the other; in parts of at least so many rows, float32 gradients
# stay as exact as PyTorch's on any number of threads. More and smaller parts would make the products slower.
_KERNEL_GRADIENT_PARTS = 4
_ROWS_OF_A_PART = 128


def _pointwise_kernel_gradient(x, kernel, dy, *, stride=1):
    count = x.size // x.shape[-1]
    # Each device's rows are parted on their own, so that a divided batch stays divided.
    devices, parts = max(1, jax.sharding.get_abstract_mesh().size), _KERNEL_GRADIENT_PARTS
    if count % (devices * parts) or count // (devices * parts) < _ROWS_OF_A_PART:
        devices = parts = 1
    x, dy = (each.reshape(devices * parts, -1, each.shape[-1]) for each in (x, dy))
    products = jnp.einsum("prc,pre->pce", x, dy, preferred_element_type=_accumulator(dy.dtype))
    products = products.reshape(devices, parts, *products.shape[1:])
    sums = _pairwise_sum(products[:, part] for part in range(parts))
    return sums.sum(0).astype(kernel.dtype)[None, None]


# --- linear: the classifier's matrix product

_FEATURE_BLOCKS = 8


def linear(x: Float[Array, "n features"], kernel: Float[Array, "features out"]) -> Float[Array, "n out"]:
    """The matrix product of one dtype. On CPU, XLA's own adds up a thousand features one after the other, and its
    float32 error is up to three times PyTorch's; adding up eight partial sums brings it to half of PyTorch's."""
    if x.shape[-1] % _FEATURE_BLOCKS:
        return jnp.dot(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_linear_in_blocks, default=jnp.dot)


def _linear_in_blocks(x, kernel):
    x = x.reshape(x.shape[0], _FEATURE_BLOCKS, -1)
    kernel = kernel.reshape(_FEATURE_BLOCKS, -1, kernel.shape[-1])
    parts = jnp.einsum("nbf,bfo->bno", x, kernel, preferred_element_type=_accumulator(x.dtype))
    return parts.sum(0).astype(x.dtype)


# --- depthwise: k*k shifted slices ("taps"), each times one vector of channels


def _pad(x, margin):
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _pad_same(x, kernel):
    return _pad(x, (kernel.shape[0] - 1) // 2)


def _every(start: int, count: int, stride: int) -> slice:
    """``count`` rows or columns from ``start`` on."""
    return slice(start, start + (count - 1) * stride + 1, stride)


def _taps(padded, kernel, stride, out_height, out_width):
    """For each kernel position: the padded image's slice that this position is multiplied with."""
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            yield (i, j), padded[:, _every(i, out_height, stride), _every(j, out_width, stride), :]


def _output_size(x, stride):
    return tuple((size - 1) // stride + 1 for size in x.shape[1:3])


def _depthwise(x, kernel, *, stride):
    wide = kernel.astype(_accumulator(kernel.dtype))
    taps = _taps(_pad_same(x, kernel), kernel, stride, *_output_size(x, stride))
    return _sum(tap * wide[i, j, 0] for (i, j), tap in taps).astype(x.dtype)


@_written_out  # for the three readers in the backward of batch normalisation
def _depthwise_input_gradient(x, kernel, dy, *, stride):
    if stride == 1:
        return _depthwise(dy, kernel[::-1, ::-1], stride=1)
    # Input row r receives output row o through kernel row i = r + pad - stride * o: rows of one residue
    # modulo the stride always meet the same kernel rows, so each residue is a small dense gather of dy,
    # and the residues are interleaved. A scatter into zeros would be several times slower.
    side, pad = kernel.shape[0], (kernel.shape[0] - 1) // 2
    height, width = x.shape[1:3]
    margin = side  # no fewer zeros than the terms reach beyond dy
    padded = _pad(dy, margin)
    wide = kernel.astype(_accumulator(kernel.dtype))
    out_height, out_width = (-(-height // stride), -(-width // stride))

    def residue(row, column):
        terms = [
            padded[
                :,
                margin + (row + pad - i) // stride : margin + (row + pad - i) // stride + out_height,
                margin + (column + pad - j) // stride : margin + (column + pad - j) // stride + out_width,
                :,
            ]
            * wide[i, j, 0]
            for i in range(side)
            if (row + pad - i) % stride == 0
            for j in range(side)
            if (column + pad - j) % stride == 0
        ]
        return _sum(terms).astype(dy.dtype)

    rows = [jnp.stack([residue(r, c) for c in range(stride)], axis=3) for r in range(stride)]
    dx = jnp.stack(rows, axis=2)  # [n, out_height, stride, out_width, stride, c]
    n, c = dy.shape[0], dy.shape[-1]
    return dx.reshape(n, out_height * stride, out_width * stride, c)[:, :height, :width]


def _depthwise_kernel_gradient(x, kernel, dy, *, stride):
    # The padded x is the forward pass's own.
    sums = _sums_of_taps(_pad_same(x, kernel), dy, side=kernel.shape[0], stride=stride)
    return sums.reshape(kernel.shape).astype(kernel.dtype)


@_written_out  # for the nine readers of dy, which is the outcome of batch normalisation's backward
def _sums_of_taps(padded, dy, *, side, stride):
    height, width = dy.shape[1:3]
    # All taps in one fusion: they are a dimension beside the channels, so that x is read once.
    taps = lax.gather(
        padded,
        np.array(list(np.ndindex(side, side)), np.int32),
        lax.GatherDimensionNumbers(offset_dims=(0, 1, 2, 4), collapsed_slice_dims=(), start_index_map=(1, 2)),
        (len(padded), (height - 1) * stride + 1, (width - 1) * stride + 1, padded.shape[3]),
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )[:, ::stride, ::stride]
    dy = jnp.broadcast_to(dy[:, :, :, None], taps.shape)
    return _sum_over_images(lambda tap, dy: tap * dy.astype(_accumulator(dy.dtype)), taps, dy)


# --- few input channels (the stem): every input value times one vector of output channels


def _few_channels(x, kernel, *, stride):
    wide = kernel.astype(_accumulator(kernel.dtype))
    taps = _taps(_pad_same(x, kernel), kernel, stride, *_output_size(x, stride))
    products = [tap[..., c, None] * wide[i, j, c] for (i, j), tap in taps for c in range(x.shape[-1])]
    return _sum(products).astype(x.dtype)


def _few_channels_input_gradient(x, kernel, dy, *, stride):
    # Wanted only for gradients with respect to images; XLA drops it from a train step.
    return jax.vjp(lambda x: _native_conv(x, kernel, stride=stride, groups=1), x)[1](dy)[0]


def _few_channels_kernel_gradient(x, kernel, dy, *, stride):
    taps = _taps(_pad_same(x, kernel), kernel, stride, *dy.shape[1:3])
    patches = jnp.concatenate([tap for _, tap in taps], axis=-1)
    return _pointwise_kernel_gradient(patches, kernel, dy).reshape(kernel.shape)


# --- batch normalisation by the batch's own statistics


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
        with jax.named_scope("normalisation"):
            return _engine_batch_norm(x, scale, bias, epsilon=epsilon, relu=relu)
    return _normalise_by_xla(x, scale, bias, epsilon=epsilon, relu=relu)


def _normalise_by_xla(x, scale, bias, *, epsilon, relu):
    count = x.size // x.shape[-1]
    with jax.named_scope("batch statistics"):
        mean = _sum_over_images(lambda x: x.astype(scale.dtype), x) / count
        var = _sum_over_images(lambda x: jnp.square(x.astype(scale.dtype) - mean), x) / count
        inverse = inverse_std(var, epsilon)
    with jax.named_scope("normalisation"):
        y = (x.astype(scale.dtype) - mean) * (scale * inverse) + bias
        y = jax.nn.relu(y) if relu else y
        return y.astype(x.dtype), mean, var, inverse


def _batch_norm_forward(x, scale, bias, epsilon, relu):
    y, mean, var, inverse = _normalise(x, scale, bias, epsilon, relu)
    return (y, mean, var), (x, scale, bias, mean, inverse)


@partial(jax.jit, static_argnums=(0, 1))
def _batch_norm_backward(epsilon, relu, residuals, cotangents):
    if engine.applies(*residuals, *cotangents):
        with jax.named_scope("normalisation gradient"):
            return tuple(_engine_batch_norm_gradient(*residuals, *cotangents, relu=relu))
    return _batch_norm_backward_by_xla(*residuals, *cotangents, relu=relu)


def _batch_norm_backward_by_xla(x, scale, bias, mean, inverse, dy, dmean, dvar, *, relu):
    # Ioffe and Szegedy 2015, section 3.
    count = x.size // x.shape[-1]
    factor = scale * inverse

    def centred_and_gradient(x, dy):
        centred, gradient = x.astype(scale.dtype) - mean, dy.astype(scale.dtype)
        return centred, jnp.where(centred * factor + bias > 0, gradient, 0) if relu else gradient

    with jax.named_scope("batch statistics gradient"):
        dbias = _sum_over_images(lambda x, dy: centred_and_gradient(x, dy)[1], x, dy)
        dscale = _sum_over_images(lambda x, dy: operator.mul(*centred_and_gradient(x, dy)), x, dy) * inverse
        per_centred = (2 * dvar - factor * inverse * dscale) / count
        per_value = (dmean - factor * dbias) / count
    with jax.named_scope("normalisation gradient"):
        centred, gradient = centred_and_gradient(x, dy)
        dx = gradient * factor + centred * per_centred + per_value
        return dx.astype(x.dtype), dscale, dbias


_engine_batch_norm = engine.operation("batch_norm", _normalise_by_xla)
_engine_batch_norm_gradient = engine.operation("batch_norm_gradient", _batch_norm_backward_by_xla)

batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)
