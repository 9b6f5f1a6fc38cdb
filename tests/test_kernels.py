"""The formulations for CPU against XLA's own convolution: values and both gradients, in float64 to 1e-12."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import Array
from jax.test_util import check_grads
from ops_tools import check
from parity_tools import FLOAT32_BAR

from flax_shufflenet.ops.batch_norm import batch_norm
from flax_shufflenet.ops.convolution import conv2d
from flax_shufflenet.ops.divided import own_rows, whole_count
from flax_shufflenet.ops.linear import linear
from flax_shufflenet.ops.rounding import inverse_std

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float64")]

CASES = {
    "pointwise": ((2, 5, 7, 6), (1, 1, 6, 4), 1, 1),
    "pointwise-one-row": ((1, 1, 1, 3), (1, 1, 3, 5), 1, 1),
    "pointwise-many-rows": ((4, 8, 8, 29), (1, 1, 29, 58), 1, 1),
    "pointwise-rows-in-no-four-parts": ((1, 5, 5, 128), (1, 1, 128, 4), 1, 1),
    "depthwise": ((2, 8, 8, 6), (3, 3, 1, 6), 1, 6),
    "depthwise-odd": ((3, 7, 5, 4), (3, 3, 1, 4), 1, 4),
    "depthwise-stride2-even": ((2, 8, 6, 6), (3, 3, 1, 6), 2, 6),
    "depthwise-stride2-odd": ((1, 9, 7, 5), (3, 3, 1, 5), 2, 5),
    "depthwise-stride3": ((2, 10, 11, 2), (3, 3, 1, 2), 3, 2),
    "depthwise-5x5-stride2": ((2, 9, 10, 3), (5, 5, 1, 3), 2, 3),
    "depthwise-one-channel": ((2, 6, 6, 1), (3, 3, 1, 1), 1, 1),
    "depthwise-1x1-stride2": ((2, 5, 6, 4), (1, 1, 1, 4), 2, 4),
    "depthwise-one-pixel": ((1, 1, 1, 4), (3, 3, 1, 4), 2, 4),
    "stem": ((2, 8, 6, 3), (3, 3, 3, 24), 1, 1),
    "stem-stride2-odd": ((2, 9, 7, 3), (3, 3, 3, 8), 2, 1),
    "dense-3x3": ((2, 6, 5, 8), (3, 3, 8, 4), 2, 1),
    "grouped": ((2, 6, 5, 8), (3, 3, 4, 6), 1, 2),
}


def arrays(case: str) -> tuple[Array, Array, int, int]:
    shape, kernel_shape, stride, groups = CASES[case]
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.standard_normal(s)) for s in (shape, kernel_shape))
    return x, kernel, stride, groups


def native(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def value_and_gradients(function: Callable, cotangents: Array | tuple[Array, ...], *inputs: Array) -> list[Array]:
    """All outcomes, then the gradient of each input."""

    @jax.jit
    def run(cotangents, *inputs):
        values, pull_back = jax.vjp(function, *inputs)
        return jax.tree.leaves((values, pull_back(cotangents)))

    return run(cotangents, *inputs)


@pytest.mark.parametrize("case", CASES)
def test_value_and_both_gradients(case: str) -> None:
    x, kernel, stride, groups = arrays(case)
    ours = partial(conv2d, stride=stride, groups=groups)
    theirs = partial(native, stride=stride, groups=groups)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(jax.eval_shape(theirs, x, kernel).shape))
    check(value_and_gradients(ours, dy, x, kernel), value_and_gradients(theirs, dy, x, kernel))


@pytest.mark.parametrize("case", ["pointwise", "depthwise-odd", "depthwise-stride2-even", "stem"])
def test_gradients_are_those_of_the_value_to_second_order(case: str) -> None:
    x, kernel, stride, groups = arrays(case)
    check_grads(partial(conv2d, stride=stride, groups=groups), (x, kernel), order=2, modes=["rev"])


@pytest.mark.parametrize("case", ["pointwise", "depthwise", "depthwise-stride2-odd", "stem"])
def test_vmap_and_scan_change_nothing(case: str) -> None:
    x, kernel, stride, groups = arrays(case)
    conv = partial(conv2d, stride=stride, groups=groups)
    xs = jnp.stack([x, -2 * x, x[::-1]])
    expected = jnp.stack([conv(each, kernel) for each in xs])
    np.testing.assert_allclose(jax.vmap(conv, (0, None))(xs, kernel), expected, rtol=1e-12, atol=1e-12)
    _, scanned = jax.lax.scan(lambda carry, each: (carry, conv(each, kernel)), None, xs)
    np.testing.assert_allclose(scanned, expected, rtol=1e-12, atol=1e-12)
    gradient = jax.grad(lambda kernel: conv(x, kernel).sum())
    np.testing.assert_allclose(jax.jit(gradient)(kernel), gradient(kernel), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["pointwise-many-rows", "depthwise", "stem"])
def test_bfloat16_is_rounded_once(case: str) -> None:
    """Sums are kept in float32, so the result is the float64 one rounded to bfloat16's 8 bits."""
    x, kernel, stride, groups = arrays(case)
    half_x, half_kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    y = conv2d(half_x, half_kernel, stride=stride, groups=groups)
    exact = native(half_x.astype(jnp.float64), half_kernel.astype(jnp.float64), stride, groups)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float64), exact, rtol=2**-8, atol=1e-5 * float(np.abs(exact).max()))


@pytest.mark.parametrize("case", ["pointwise", "depthwise", "stem"])
def test_accelerators_get_their_own_convolution(case: str) -> None:
    x, kernel, stride, groups = arrays(case)
    conv = jax.jit(partial(conv2d, stride=stride, groups=groups))
    traced = conv.trace(x, kernel)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("features", [1024, 2048, 30])
def test_linear_is_the_matrix_product(features: int) -> None:
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal((3, features)), random.standard_normal((features, 7))
    y = linear(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(y, x @ kernel, rtol=0, atol=1e-12 * np.abs(x @ kernel).max())


def test_linear_of_no_images() -> None:
    y, dx, dkernel = value_and_gradients(linear, jnp.zeros((0, 7)), jnp.zeros((0, 16)), jnp.ones((16, 7)))
    assert (y.shape, dx.shape) == ((0, 7), (0, 16))
    np.testing.assert_array_equal(dkernel, np.zeros((16, 7)))


@pytest.mark.usefixtures("optimised")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators have their own product")
@pytest.mark.parametrize("features", [1024, 2048])
def test_linear_in_float32_is_as_exact_as_pytorch(features: int) -> None:
    random = np.random.default_rng(0)
    x, kernel = ((random.standard_normal(shape) + 1).astype(np.float32) for shape in ((64, features), (features, 100)))
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    ours, theirs = linear(jnp.asarray(x), jnp.asarray(kernel)), torch.from_numpy(x) @ torch.from_numpy(kernel)
    assert np.linalg.norm(np.asarray(ours) - exact) <= FLOAT32_BAR * np.linalg.norm(theirs.numpy() - exact)


@pytest.mark.usefixtures("optimised")
def test_one_over_the_deviation_is_exact_to_the_last_bits_in_float32() -> None:
    var = jnp.asarray(np.random.default_rng(0).uniform(0, 4, 10_000), jnp.float32)
    exact = 1 / np.sqrt(np.asarray(var + jnp.float32(1e-5), np.float64))
    np.testing.assert_allclose(jax.jit(inverse_std, static_argnums=1)(var, 1e-5), exact, rtol=2**-23)


def test_devices_have_the_rows_of_their_own_images() -> None:
    whole = jnp.arange(24.0).reshape(12, 2)

    def on_one_device(own: Array) -> Array:
        assert whole_count(len(own), "batch") == 12
        return own_rows(whole, "batch")

    rows = jax.vmap(on_one_device, axis_name="batch")(jnp.zeros((4, 3)))
    np.testing.assert_array_equal(rows.reshape(12, 2), whole)
    assert own_rows(whole, None) is whole
    assert whole_count(3, None) == 3


# Sums over few rows, many, and numbers of rows that blocks divide well, badly and not at all.
SHAPES = [(2, 3, 4, 5), (64, 16, 16, 3), (5, 33, 47, 2), (1, 1, 1031, 1), (128, 4, 4, 2)]


def batch_norm_inputs(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(0)
    x, scale, bias = (jnp.asarray(random.standard_normal(s) + 0.5) for s in (shape, shape[-1], shape[-1]))
    return x, scale, bias


def plain_batch_norm(x, scale, bias, epsilon, relu):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = (x - mean) / jnp.sqrt(var + epsilon) * scale + bias
    return jnp.maximum(y, 0) if relu else y, mean, var


# The ReLU goes value by value; with and without it, the engine has each shape in its own tests.
@pytest.mark.parametrize(("shape", "relu"), [(shape, number % 2 == 0) for number, shape in enumerate(SHAPES)])
def test_batch_norm_is_the_plain_one(shape: tuple[int, ...], relu: bool) -> None:
    inputs = batch_norm_inputs(shape)
    random = np.random.default_rng(1)
    cotangents = tuple(jnp.asarray(random.standard_normal(s)) for s in (shape, shape[-1], shape[-1]))
    ours, theirs = (
        value_and_gradients(lambda x, scale, bias, norm=norm: norm(x, scale, bias, 1e-5, relu), cotangents, *inputs)
        for norm in (batch_norm, plain_batch_norm)
    )
    check(ours, theirs)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_gradients_include_those_through_its_statistics(relu: bool) -> None:
    norm = jax.jit(lambda *inputs: batch_norm(*inputs, epsilon=1e-5, relu=relu))
    check_grads(norm, batch_norm_inputs((2, 3, 4, 5)), order=1, modes=["rev"])


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_of_a_divided_batch_is_that_of_the_whole(relu: bool) -> None:
    x, scale, bias = batch_norm_inputs((12, 5, 7, 3))
    random = np.random.default_rng(1)
    cotangents = tuple(jnp.asarray(random.standard_normal(shape)) for shape in (x.shape, 3, 3))
    whole = value_and_gradients(lambda *given: batch_norm(*given, epsilon=1e-5, relu=relu), cotangents, x, scale, bias)

    def on_one_device(x: Array, dy: Array) -> list[Array]:
        _, dmean, dvar = cotangents  # which all devices have a share in
        given = (dy, dmean / 4, dvar / 4), x, scale, bias
        norm = partial(batch_norm, epsilon=1e-5, relu=relu, axis_name="batch")
        return value_and_gradients(norm, *given)

    x, dy = (each.reshape(4, 3, 5, 7, 3) for each in (x, cotangents[0]))
    y, mean, var, dx, dscale, dbias = jax.vmap(on_one_device, axis_name="batch")(x, dy)
    found = [y.reshape(-1, 5, 7, 3), mean[0], var[3], dx.reshape(-1, 5, 7, 3), dscale.sum(0), dbias.sum(0)]
    check(found, whole)


def test_the_variance_of_a_divided_batch_does_not_cancel() -> None:
    """At a mean of 10,000 standard deviations float32's own means of the parts, which differ, are wrong by 1e-4 of
    one; E[x^2] - E[x]^2 would be wrong by a factor."""
    x = np.random.default_rng(0).standard_normal((4, 16, 5, 7, 3)) + 1e4 + 3 * np.arange(4)[:, None, None, None, None]
    x = jnp.asarray(x, jnp.float32)
    ones = jnp.ones(3, jnp.float32)
    norm = jax.vmap(lambda x: batch_norm(x, ones, ones, 1e-5, False, "batch"), axis_name="batch")
    _, mean, var = norm(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean[0], exact.mean((0, 1, 2, 3)), rtol=2e-7)
    np.testing.assert_allclose(var[0], exact.var((0, 1, 2, 3)), rtol=2e-4)


def test_batch_norm_means_the_same_under_vmap_and_scan() -> None:
    x, scale, bias = batch_norm_inputs((64, 5, 7, 3))
    xs = jnp.stack([x, -2 * x, x[::-1]])

    def gradient(x: Array) -> Array:
        def loss(x: Array) -> Array:
            y, _, _ = batch_norm(x, scale, bias, 1e-5, True)
            return jnp.sin(y).sum()

        return jax.grad(loss)(x)

    expected = jnp.stack([gradient(each) for each in xs])
    check([jax.vmap(gradient)(xs)], [expected])
    _, scanned = jax.lax.scan(lambda carry, each: (carry, gradient(each)), None, xs)
    check([scanned], [expected])


@pytest.mark.parametrize("shape", SHAPES)
def test_depthwise_kernel_gradient_over_many_rows(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    channels = shape[-1]
    x, dy, kernel = (jnp.asarray(random.standard_normal(s)) for s in (shape, shape, (3, 3, 1, channels)))
    (_, ours), (_, theirs) = (
        value_and_gradients(partial(conv, x, stride=1, groups=channels), dy, kernel) for conv in (conv2d, native)
    )
    check([ours], [theirs])
