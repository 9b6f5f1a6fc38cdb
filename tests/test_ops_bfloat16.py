"""The CPU engine in bfloat16, which it only keeps maps and kernels in: against the same operations in float64.

All builds are run. What is kept in bfloat16 may be one rounding, 2**-8, from the exact value. What stays float32 is
compared with the reference in JAX, which keeps its maps in bfloat16 as well: where another order of additions rounds a
value the other way, its sum differs by that much of one value.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ops_tools import batch_norm_arrays, builds, gradient_of, layer, normalisation, random, run_build

from flax_shufflenet import ops
from flax_shufflenet.ops import batch_norm, branch, convolution, native, units  # noqa: F401 (their operations)

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(not ops.info().engine, reason=f"the CPU engine is not used: {ops.info().why}"),
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="the CPU engine computes on CPU"),
]

ROUNDING = 2.0**-8

Case = tuple[str, Sequence[jax.Array], dict]


def batch_norm_cases() -> Iterator[Case]:
    for relu, shape in enumerate([(31, 7, 9, 58), (2, 3, 4, 5), (1, 1, 2, 1), (3, 1, 1, 1031)]):
        x, _, _, dy, per_centred, per_value = batch_norm_arrays(shape)
        how, options = normalisation(shape[-1], seed=6), {"relu": relu % 2 == 0}
        yield "batch_norm_statistics", (x,), {"epsilon": 1e-5}
        yield "batch_norm", (x, *how), options
        yield "batch_norm_gradient_sums", (dy, x, *how), options
        yield "batch_norm_input_gradient", (dy, x, *how, per_centred, per_value), options


def convolution_cases() -> Iterator[Case]:
    depthwise = [((3, 7, 5, 58), 3, 1), ((2, 9, 7, 5), 3, 2), ((1, 1, 1, 4), 3, 1), ((2, 9, 10, 3), 5, 2)]
    few = [((2, 8, 6, 3), 3, 1, 24), ((2, 9, 7, 3), 3, 2, 8), ((1, 1, 1, 3), 3, 2, 5)]
    shapes = [("depthwise", x, (k, k, 1, x[-1]), stride) for x, k, stride in depthwise]
    shapes += [("stem", x, (k, k, x[-1], out), stride) for x, k, stride, out in few]
    for name, shape, kernel_shape, stride in shapes:
        x, kernel = random(*shape), random(*kernel_shape, seed=1)
        height, width = ((size - 1) // stride + 1 for size in shape[1:3])
        dy = random(shape[0], height, width, kernel_shape[-1], seed=2)
        yield name, (x, kernel), {"stride": stride}
        yield f"{name}_kernel_gradient", (x, kernel, dy), {"stride": stride}
        if name == "depthwise":
            yield f"{name}_input_gradient", (x, kernel, dy), {"stride": stride}


# Channels that fill no vector, more images than pieces, one row, one pixel.
MAPS = [(3, 7, 5, 58), (17, 4, 4, 10), (1, 1, 3, 116), (1, 1, 1, 5)]


def unit_cases() -> Iterator[Case]:
    for number, shape in enumerate(MAPS):
        n, h, w, channels = shape
        x, how, relu = random(*shape), normalisation(channels, seed=2), number % 2 == 0
        kernel, taps = random(1, 1, channels, channels + 5, seed=1), random(3, 3, 1, channels, seed=1)
        z, others = random(n, h, w, channels + 5, seed=3), random(n, h, w, channels + 3, seed=4)
        measured = {"epsilon": 1e-5, "measure": True}
        of_all = {"relu": relu, "first": 0}
        of_some = {"relu": False, "first": 3}
        wider = random(n, h, w, channels + 3, seed=5)
        yield "pointwise_unit", (x, kernel, *how), {**measured, **of_all}
        yield "pointwise_unit", (wider, kernel), {**measured, **of_some}
        yield "pointwise_unit", (x, kernel), {**of_all, "epsilon": 1e-5, "measure": False}
        yield "pointwise_unit_gradient", (*gradient_of(z), x, kernel, *how), {**of_all, "add": False}
        yield "pointwise_unit_gradient", (*gradient_of(z), x, kernel), {**of_all, "add": False}
        for add in (False, True):
            yield "pointwise_unit_gradient", (*gradient_of(z), wider, kernel, others), {**of_some, "add": add}
        for stride in (1, 2):
            out = random(n, (h - 1) // stride + 1, (w - 1) // stride + 1, channels, seed=6)
            for read in (how, ()):
                options = {"relu": relu, "stride": stride}
                yield "depthwise_unit", (x, taps, *read), {**measured, **options}
                yield "depthwise_unit_gradient", (*gradient_of(out), x, taps, *read), options
        dy, left = random(n, h, w, 2 * channels, seed=7), random(*shape, seed=8)
        options = {"left_relu": relu, "right_relu": not relu}
        yield "join", (left, x, *how, *how), options
        yield "join", (dy, x, *how), options
        yield "join_gradient", (dy, x, *how, left, *how), options


def branch_cases() -> Iterator[Case]:
    for kinds, stride, shape in [
        ("r", 1, (2, 7, 5)),
        ("dr", 2, (3, 8, 8)),
        ("rdp", 2, (1, 91, 90)),
        ("d", 1, (1, 1, 1)),
    ]:
        maps = (random(*shape, 24, seed=1), random(*shape, 3, seed=2))
        pieces, inputs = (1, 0, 3, 0, 2, 17), 20
        if kinds == "r":  # read where it lies
            pieces, inputs = (0, 5, 19), 19
        arrays, layers = [*maps], []
        for number, kind in enumerate(kinds):
            own = layer(kind, inputs, stride, seed=3 + number)
            arrays += map(jnp.asarray, branch._filled_up(own))
            layers += [int(own.depthwise), inputs, own.kernel.shape[-1], int(own.relu)]
            inputs = own.kernel.shape[-1]
        side = 3 if "d" in kinds else 1
        yield "inference_branch", arrays, {"pieces": pieces, "layers": tuple(layers), "side": side, "stride": stride}


def is_kept_in_half(name: str, array: np.ndarray) -> bool:
    """Maps and kernels; a fused net's kernels are widened once."""
    return array.ndim == 4 if name == "inference_branch" else array.ndim > 1


def names(case: Case) -> str:
    name, arrays, options = case
    return "-".join([name, str(arrays[0].shape), *(f"{key}={value}" for key, value in options.items())])


CASES = [*batch_norm_cases(), *convolution_cases(), *unit_cases(), *branch_cases()]


@pytest.mark.parametrize("case", CASES, ids=names)
def test_maps_are_rounded_once_and_all_else_stays_float32(case) -> None:
    name, arrays, options = case
    arrays = [np.asarray(array) for array in arrays]  # JAX would compile a conversion for each shape
    kept = [array.astype(jnp.bfloat16 if is_kept_in_half(name, array) else np.float32) for array in arrays]
    reference = partial(native._references[name], **options)

    @jax.jit
    def everything(*kept):
        exact = reference(*(array.astype(jnp.float64) for array in kept))
        return reference(*kept), exact, [run_build(instructions, name, *kept, **options) for instructions in builds()]

    expected, exact, found_by_builds = everything(*kept)
    for found in found_by_builds:
        for a, b, truth in zip(found, expected, exact, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            largest = float(np.abs(truth).max())
            if a.dtype == jnp.bfloat16:
                a, truth = (np.asarray(each, np.float64) for each in (a, truth))
                np.testing.assert_allclose(a, truth, rtol=ROUNDING, atol=1e-5 * largest)
            else:
                assert a.dtype == jnp.float32
                np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING * largest)


def test_sums_and_statistics_are_those_of_the_maps_as_they_are_kept() -> None:
    """As layer by layer, where the next layer finds the rounded map."""
    x, kernel, how = random(3, 7, 5, 58), random(1, 1, 58, 63, seed=1), normalisation(58, seed=2)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    how = [vector.astype(jnp.float32) for vector in how]
    z, mean, var, _ = units.pointwise_unit(x, kernel, *how, epsilon=1e-5, measure=True, relu=True, first=0)
    kept = np.asarray(z, np.float64)
    np.testing.assert_allclose(mean, kept.mean((0, 1, 2)), rtol=1e-6, atol=1e-6 * kept.std())
    np.testing.assert_allclose(var, kept.var((0, 1, 2)), rtol=1e-6)
    of_output = [array.astype(jnp.bfloat16 if array.ndim > 1 else jnp.float32) for array in gradient_of(z)]
    arrays = (*of_output, x, kernel, *how)
    dx, _, total, product = units.pointwise_unit_gradient(*arrays, relu=True, first=0, add=False)
    kept, centred = np.asarray(dx, np.float64), np.asarray(x, np.float64) - np.asarray(how[0], np.float64)
    np.testing.assert_allclose(total, kept.sum((0, 1, 2)), rtol=1e-6, atol=1e-6 * np.abs(kept).sum((0, 1, 2)).max())
    np.testing.assert_allclose(product, (kept * centred).sum((0, 1, 2)), rtol=1e-5, atol=1e-6 * np.abs(product).max())


@pytest.mark.parametrize("instructions", builds())
def test_rounding_is_to_the_nearest_and_of_two_to_the_even_one(instructions) -> None:
    """Products of two numbers of 8 bits have 16, so that many lie in the middle; some are too large, or no numbers."""
    random = np.random.default_rng(0)
    x, kernel = (random.integers(128, 256, size) * 2.0 ** random.integers(-9, 9, size) for size in ((40, 31, 17), 17))
    x[0, 0], x[0, 1], x[0, 2], x[0, 3] = np.nan, np.inf, -np.inf, 3.3e38
    x, kernel = x[None].astype(jnp.bfloat16), kernel.reshape(1, 1, 1, -1).astype(jnp.bfloat16)
    (y,) = run_build(instructions, "depthwise", jnp.asarray(x), jnp.asarray(kernel), stride=1)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = (x.astype(np.float32) * kernel.astype(np.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(y, np.float32), exact.astype(np.float32))


def test_mixed_dtypes_are_left_to_xla() -> None:
    x, vector = jnp.zeros((1, 2, 2, 3), jnp.bfloat16), jnp.zeros(3, jnp.float32)
    assert native.applies(x, vector)
    assert not native.applies(x, vector.astype(jnp.bfloat16))
    assert not native.applies(x, x.astype(jnp.float32), vector)
    assert not native.applies(x.astype(jnp.float32), vector.astype(jnp.float64))
    assert not native.applies(x.astype(jnp.float16), vector)
