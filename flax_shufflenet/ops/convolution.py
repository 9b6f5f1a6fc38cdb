"""Convolutions, in NHWC, computed the way each platform is fast at.

The reference is XLA's own convolution, and so is what GPU and TPU run. XLA's CPU backend has no fast path for depthwise
convolutions, for few input channels, or for the kernel gradient of a 1x1 convolution. On CPU, the engine computes the
first two, or else they are sums of shifted slices ("taps"), each times one vector; 1x1 convolutions are products.
Which of them runs is decided when the program is lowered for a platform, so one traced function serves all.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jaxtyping import Array, Float

from flax_shufflenet.ops import native as engine
from flax_shufflenet.ops.divided import vary_alike
from flax_shufflenet.ops.rounding import accumulator

Images = Float[Array, "n h w c"]
Kernel = Float[Array, "kh kw cin cout"]

# Up to this many input channels, one fusion of scalar-times-vector products beats XLA's convolution on CPU.
_FEW_CHANNELS = 4


@partial(jax.jit, static_argnames=("stride", "groups"))
def conv2d(x: Images, kernel: Kernel, *, stride: int = 1, groups: int = 1) -> Float[Array, "n oh ow cout"]:
    """PyTorch's ``conv2d`` with ``padding=(k - 1) // 2``, in NHWC, without bias.

    ``x`` and ``kernel`` have one float dtype, which is the result's; bfloat16 accumulates in float32.
    ``kernel`` is HWIO with ``cin = c / groups``; kernels are square with an odd side. Differentiable in
    reverse mode.

    Raises:
        ValueError: ``x`` has other dimensions or channels.
    """
    check_shape(x, kernel.shape[2] * groups)
    return _conv2d(*vary_alike((x, kernel)), stride, groups)


def check_shape(x: Array, channels: int) -> None:
    """Raises ValueError unless ``x`` is what a convolution of so many channels takes."""
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"this convolution takes [n, h, w, {channels}], not {x.shape}")


def reference(x: Images, kernel: Kernel, *, stride: int, groups: int) -> Float[Array, "n oh ow cout"]:
    """XLA's own convolution."""
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
    if on_cpu and on_cpu.name in ENGINES and engine.applies(x, kernel):
        return ENGINES[on_cpu.name].forward(x, kernel, stride=stride)[0]
    return _conv2d_by_xla(x, kernel, stride, groups)


def _conv2d_by_xla(x, kernel, stride, groups):
    on_cpu = _cpu_formulation(x, kernel, stride, groups)
    default = partial(reference, stride=stride, groups=groups)
    if on_cpu is None:
        return default(x, kernel)
    with jax.named_scope(on_cpu.name):
        return lax.platform_dependent(x, kernel, cpu=partial(on_cpu.forward, stride=stride), default=default)


def _conv2d_forward(x, kernel, stride, groups):
    return _conv2d(x, kernel, stride, groups), (x, kernel)


# Traced once for all blocks of one shape, as conv2d and batch normalisation are: half of the time that tracing takes.
@partial(jax.jit, static_argnums=(0, 1))
def _conv2d_backward(stride, groups, residuals, dy):
    x, kernel = residuals
    on_cpu = _cpu_formulation(x, kernel, stride, groups)
    if on_cpu and on_cpu.name in ENGINES and engine.applies(x, kernel):
        by_engine = ENGINES[on_cpu.name]
        dx = by_engine.input_gradient(x, kernel, dy, stride=stride)[0]
        return dx, by_engine.kernel_gradient(x, kernel, dy, stride=stride)[0]
    return _conv2d_backward_by_xla(x, kernel, dy, stride, groups)


def _conv2d_backward_by_xla(x, kernel, dy, stride, groups):
    on_cpu = _cpu_formulation(x, kernel, stride, groups)

    def gradients(x, kernel, dy):
        return jax.vjp(partial(reference, stride=stride, groups=groups), x, kernel)[1](dy)

    if on_cpu is None:
        return gradients(x, kernel, dy)

    def cpu_gradients(x, kernel, dy):
        with jax.named_scope(f"{on_cpu.name} input gradient"):
            dx = on_cpu.input_gradient(x, kernel, dy, stride=stride)
        with jax.named_scope(f"{on_cpu.name} kernel gradient"):
            return dx, on_cpu.kernel_gradient(x, kernel, dy, stride=stride)

    return lax.platform_dependent(x, kernel, dy, cpu=cpu_gradients, default=gradients)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _groups(x, kernel):
    return x.shape[-1] // kernel.shape[2]


def _forward_by_xla(x, kernel, *, stride):
    return [_conv2d_by_xla(x, kernel, stride, _groups(x, kernel))]


def _input_gradient_by_xla(x, kernel, dy, *, stride):
    return [_conv2d_backward_by_xla(x, kernel, dy, stride, _groups(x, kernel))[0]]


def _kernel_gradient_by_xla(x, kernel, dy, *, stride):
    return [_conv2d_backward_by_xla(x, kernel, dy, stride, _groups(x, kernel))[1]]


def outcome(x: ShapedArray, kernel: ShapedArray, *, stride: int) -> ShapedArray:
    """The shape and dtype of a convolution's map."""
    return ShapedArray((x.shape[0], *output_size(x, stride), kernel.shape[-1]), x.dtype)


def _forward_operation(name: str) -> Callable:
    return engine.operation(name, _forward_by_xla, lambda x, kernel, *, stride: [outcome(x, kernel, stride=stride)])


def _kernel_gradient_operation(name: str) -> Callable:
    return engine.operation(name, _kernel_gradient_by_xla, lambda _x, kernel, _dy, *, stride: [engine.like(kernel)])


ENGINES = {
    "depthwise": _Formulation(
        "depthwise",
        _forward_operation("depthwise"),
        engine.operation(
            "depthwise_input_gradient", _input_gradient_by_xla, lambda x, _kernel, _dy, *, stride: [engine.like(x)]
        ),
        _kernel_gradient_operation("depthwise_kernel_gradient"),
    ),
    "stem": _Formulation(
        "stem",
        _forward_operation("stem"),
        _input_gradient_by_xla,  # wanted only for gradients with respect to images
        _kernel_gradient_operation("stem_kernel_gradient"),
    ),
}
"""What the engine computes, by the names of CPU's formulations."""


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(operator.add, terms)


# --- pointwise: a matrix product over the last axis


def _pointwise(x, kernel, *, stride=1):
    return jnp.dot(x, kernel[0, 0], preferred_element_type=accumulator(x.dtype)).astype(x.dtype)


def _pointwise_input_gradient(x, kernel, dy, *, stride=1):
    return _pointwise(dy, kernel.swapaxes(2, 3))


# A product adds up its thousands of rows one after the other; in parts of at least so many rows, float32 gradients
# stay as exact as PyTorch's on any number of threads. More and smaller parts would make the products slower.
_KERNEL_GRADIENT_PARTS = 4
_ROWS_OF_A_PART = 128


def _pointwise_kernel_gradient(x, kernel, dy, *, stride=1):
    count = x.size // x.shape[-1]
    parts = _KERNEL_GRADIENT_PARTS
    if count % parts or count // parts < _ROWS_OF_A_PART:
        parts = 1
    x, dy = (each.reshape(parts, -1, each.shape[-1]) for each in (x, dy))
    products = jnp.einsum("prc,pre->pce", x, dy, preferred_element_type=accumulator(dy.dtype))
    return _sum(products).astype(kernel.dtype)[None, None]


# --- depthwise: k*k taps, each times one vector of channels


def _pad_same(x, kernel):
    margin = (kernel.shape[0] - 1) // 2
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _every(start: int, count: int, stride: int) -> slice:
    """``count`` rows or columns from ``start`` on."""
    return slice(start, start + (count - 1) * stride + 1, stride)


def _taps(padded, kernel, stride, out_height, out_width) -> Iterator[tuple[tuple[int, int], Array]]:
    """For each kernel position: the padded image's slice that this position is multiplied with."""
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            yield (i, j), padded[:, _every(i, out_height, stride), _every(j, out_width, stride), :]


def output_size(x: Array | ShapedArray, stride: int) -> tuple[int, int]:
    """A convolution's height and width."""
    return (x.shape[1] - 1) // stride + 1, (x.shape[2] - 1) // stride + 1


def _depthwise(x, kernel, *, stride):
    wide = kernel.astype(accumulator(kernel.dtype))
    taps = _taps(_pad_same(x, kernel), kernel, stride, *output_size(x, stride))
    return _sum(tap * wide[i, j, 0] for (i, j), tap in taps).astype(x.dtype)


def _depthwise_input_gradient(x, kernel, dy, *, stride):
    if stride > 1:  # dy's rows and columns back where they were taken, and zeros between them
        filled = [
            (0, size - (out - 1) * stride - 1, stride - 1)
            for size, out in zip(x.shape[1:3], dy.shape[1:3], strict=True)
        ]
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *filled, (0, 0, 0)))
    return _depthwise(dy, kernel[::-1, ::-1], stride=1)


def _depthwise_kernel_gradient(x, kernel, dy, *, stride):
    wide = dy.astype(accumulator(dy.dtype))
    sums = [jnp.sum(tap * wide, (0, 1, 2)) for _, tap in _taps(_pad_same(x, kernel), kernel, stride, *dy.shape[1:3])]
    return jnp.stack(sums).reshape(kernel.shape).astype(kernel.dtype)


# --- few input channels (the stem): every input value times one vector of output channels


def _few_channels(x, kernel, *, stride):
    wide = kernel.astype(accumulator(kernel.dtype))
    taps = _taps(_pad_same(x, kernel), kernel, stride, *output_size(x, stride))
    products = [tap[..., c, None] * wide[i, j, c] for (i, j), tap in taps for c in range(x.shape[-1])]
    return _sum(products).astype(x.dtype)


def _few_channels_input_gradient(x, kernel, dy, *, stride):
    # Wanted only for gradients with respect to images; XLA drops it from a train step.
    return jax.vjp(lambda x: reference(x, kernel, stride=stride, groups=1), x)[1](dy)[0]


def _few_channels_kernel_gradient(x, kernel, dy, *, stride):
    taps = _taps(_pad_same(x, kernel), kernel, stride, *dy.shape[1:3])
    patches = jnp.concatenate([tap for _, tap in taps], axis=-1)
    return _pointwise_kernel_gradient(patches, kernel, dy).reshape(kernel.shape)
