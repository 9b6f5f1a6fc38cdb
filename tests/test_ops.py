"""The CPU engine: against XLA's operations in float64 to 1e-12, float32 against float64, and what it refuses."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ops_tools import (
    batch_norm_arrays,
    builds,
    check,
    check_operation,
    gradient_of,
    layer,
    normalisation,
    random,
    run_build,
)

from flax_shufflenet import ops
from flax_shufflenet.ops import batch_norm, branch, convolution, native, units

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.skipif(not ops.info().engine, reason=f"the CPU engine is not used: {ops.info().why}"),
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="the CPU engine computes on CPU"),
]

# Channels that fill no vector, sides and strides of any kind, one pixel, one channel, more images than pieces.
DEPTHWISE = [
    ((2, 8, 8, 24), 3, 1), ((3, 7, 5, 58), 3, 1), ((17, 4, 4, 116), 3, 1), ((1, 1, 1, 4), 3, 1), ((2, 6, 1, 1), 3, 1),
    ((2, 8, 6, 24), 3, 2), ((2, 9, 7, 5), 3, 2), ((1, 1, 1, 3), 3, 2), ((3, 5, 4, 31), 3, 3), ((2, 9, 10, 3), 5, 2),
    ((1, 3, 2, 7), 7, 1), ((1, 2, 3, 2), 3, 5), ((2, 3, 3, 5), 1, 2), ((1, 1, 2, 1031), 3, 1),
]  # fmt: skip
STEM = [
    ((2, 8, 6, 3), 3, 1, 24), ((2, 9, 7, 3), 3, 2, 8), ((1, 1, 1, 3), 3, 2, 5), ((3, 4, 5, 1), 5, 1, 1),
    ((2, 5, 3, 4), 3, 1, 33), ((18, 3, 2, 2), 1, 2, 9),
]  # fmt: skip
CONVOLUTIONS = [(x, (k, k, 1, x[-1]), s) for x, k, s in DEPTHWISE]
CONVOLUTIONS += [(x, (k, k, x[-1], out), s) for x, k, s, out in STEM]


@pytest.mark.parametrize(("shape", "kernel_shape", "stride"), CONVOLUTIONS, ids=str)
def test_convolutions_and_gradients_are_xlas(shape, kernel_shape, stride) -> None:
    x, kernel = random(*shape), random(*kernel_shape, seed=1)
    groups = shape[-1] // kernel_shape[2]
    name = "depthwise" if groups == shape[-1] == kernel_shape[-1] else "stem"
    by_engine = convolution.ENGINES[name]

    def engine(x, kernel, dy):
        (y,) = by_engine.forward(x, kernel, stride=stride)
        gradients = (by_engine.input_gradient, by_engine.kernel_gradient)
        return [y, *(gradient(x, kernel, dy, stride=stride)[0] for gradient in gradients)]

    def xla(x, kernel, dy):
        y, pull_back = jax.vjp(partial(convolution.reference, stride=stride, groups=groups), x, kernel)
        return [y, *pull_back(dy)]

    dy = random(shape[0], *convolution.output_size(x, stride), kernel_shape[-1], seed=2)
    check_operation(engine, xla, x, kernel, dy)


# Rows and channels that fill no vector and no block, fewer rows than are taken together, and enough for many pieces.
@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 2, 1), (5, 33, 47, 2), (31, 7, 9, 58), (3, 1, 1, 1031)], ids=str
)
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_and_its_gradient_are_xlas(shape, relu) -> None:
    x, scale, bias, dy, per_centred, per_value = batch_norm_arrays(shape)
    mean, _, inverse = check_operation(batch_norm.statistics, batch_norm.statistics_reference, x, epsilon=1e-5)
    how = mean, inverse, scale, bias
    check_operation(batch_norm.normalise, batch_norm.normalise_reference, x, *how, relu=relu)
    check_operation(batch_norm.gradient_sums, batch_norm.gradient_sums_reference, dy, x, *how, relu=relu)
    given = dy, x, *how, per_centred, per_value
    check_operation(batch_norm.input_gradient, batch_norm.input_gradient_reference, *given, relu=relu)


# Channels that fill no vector, one image, odd sides, more images than pieces.
MAPS = [(2, 8, 8, 24), (3, 7, 5, 58), (17, 4, 4, 10), (1, 1, 3, 116), (2, 3, 3, 1)]


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("read", ["plain", "normalised", "rectified"])
def test_pointwise_units_are_xlas(shape, read) -> None:
    *_, depth = shape
    x, kernel = random(*shape), random(1, 1, depth, depth + 5, seed=1)
    how = () if read == "plain" else normalisation(depth, seed=2)
    options = {"relu": read == "rectified", "first": 0}
    measured = {**options, "epsilon": 1e-5, "measure": True}
    z, *_ = check_operation(units.pointwise_unit, units._pointwise, x, kernel, *how, **measured)
    arrays = (*gradient_of(z), x, kernel, *how)
    check_operation(units.pointwise_unit_gradient, units._pointwise_gradient, *arrays, **options, add=False)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("add", [False, True])
def test_pointwise_units_of_some_channels_are_xlas(shape, add) -> None:
    n, h, w, depth = shape
    x, kernel, others = random(n, h, w, depth + 3), random(1, 1, depth, 7, seed=1), random(n, h, w, depth + 3, seed=2)
    options = {"relu": False, "first": 3}
    measured = {**options, "epsilon": 1e-5, "measure": True}
    z, *_ = check_operation(units.pointwise_unit, units._pointwise, x, kernel, **measured)
    arrays = (*gradient_of(z), x, kernel, others)
    check_operation(units.pointwise_unit_gradient, units._pointwise_gradient, *arrays, **options, add=add)


# How a map is read goes with the stride, which has ways of its own, not with the kernel's side.
@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize(
    ("side", "stride", "read"),
    [
        *((3, stride, read) for stride in (1, 2) for read in ("plain", "normalised", "rectified")),
        (5, 2, "normalised"),
    ],
)
def test_depthwise_units_are_xlas(shape, side, stride, read) -> None:
    *_, channels = shape
    x, kernel = random(*shape), random(side, side, 1, channels, seed=1)
    how = () if read == "plain" else normalisation(channels, seed=2)
    options = {"relu": read == "rectified", "stride": stride}
    measured = {**options, "epsilon": 1e-5, "measure": True}
    z, *_ = check_operation(units.depthwise_unit, units._depthwise, x, kernel, *how, **measured)
    arrays = (*gradient_of(z), x, kernel, *how)
    check_operation(units.depthwise_unit_gradient, units._depthwise_gradient, *arrays, **options)


def test_units_that_measure_nothing_have_a_zero_for_each_channel() -> None:
    x, kernel = random(2, 3, 4, 5), random(1, 1, 5, 7, seed=1)
    _, *statistics = units.pointwise_unit(x, kernel, epsilon=1e-5, measure=False, relu=False, first=0)
    np.testing.assert_array_equal(jnp.stack(statistics), np.zeros((3, 7)))


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_joins_are_xlas(shape, relu) -> None:
    n, h, w, channels = shape
    right, of_right, of_left = random(*shape), normalisation(channels, seed=1), normalisation(channels, seed=5)
    dy = random(n, h, w, 2 * channels, seed=9)
    for left, how in ((random(n, h, w, 2 * channels, seed=8), ()), (random(*shape, seed=8), of_left)):
        options = {"left_relu": relu, "right_relu": not relu}
        check_operation(units.join_branches, units._join, left, right, *of_right, *how, **options)
        arrays = (dy, right, *of_right, *((left, *how) if how else ()))
        engine = partial(own_half, units.join_branches_gradient, channels)
        check_operation(engine, partial(own_half, units._join_gradient, channels), *arrays, **options)


def own_half(gradient, channels, *arrays, **options):
    """A join's gradient without the other half of the left map's channels, which is not there yet."""
    left, *rest = gradient(*arrays, **options)
    return [left[..., :channels], *rest]


# Rows and columns that are cut into no equal bands, one pixel, and an image that several threads share.
@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1, 1), (3, 8, 8), (1, 91, 90)], ids=str)
@pytest.mark.parametrize(
    ("kinds", "stride"), [("r", 1), ("p", 1), ("dr", 1), ("dr", 2), ("rdr", 1), ("rdp", 2), ("d", 1)]
)
def test_branches_for_inference_are_xlas(shape, kinds, stride) -> None:
    maps = [random(*shape, 5), random(*shape, 24, seed=1), random(*shape, 3, seed=2)]
    pieces = [branch.Piece(1, 0, 24)] if kinds == "r" else [branch.Piece(2, 0, 3), branch.Piece(1, 2, 19)]
    layers, width = [], sum(piece.stop - piece.start for piece in pieces)
    for number, kind in enumerate(kinds):
        layers.append(layer(kind, width, stride, seed=3 + number))
        width = layers[-1].kernel.shape[-1]
    assert branch.applies(maps, layers)

    def xla(*maps):
        x = jnp.concatenate([maps[piece.map][..., piece.start : piece.stop] for piece in pieces], axis=-1)
        for each in layers:
            x = convolution.reference(x, jnp.asarray(each.kernel), stride=each.stride, groups=each.groups) + each.bias
            x = jax.nn.relu(x) if each.relu else x
        return [x]

    check_operation(lambda *maps: [branch.run(maps, pieces, layers)], xla, *maps)


def test_the_variance_is_exact_at_any_mean() -> None:
    """At a mean of 10,000 standard deviations, E[x^2] - E[x]^2 in float32 would be wrong by a factor."""
    x = (random(16, 16, 16, 24) + 1e4).astype(jnp.float32)
    mean, var, _ = batch_norm.statistics(x, epsilon=1e-5)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-6)


def test_a_relu_passes_on_what_is_no_number() -> None:
    x = random(2, 3, 4, 5).at[0, 0, 0, 2].set(jnp.nan)
    found = batch_norm.batch_norm(x, jnp.ones(5), jnp.zeros(5), 1e-5, True)
    y, _, _ = found
    assert jnp.isnan(y[..., 2]).all()
    assert not jnp.isnan(jnp.delete(y, 2, axis=-1)).any()


def test_one_channels_infinities_stay_in_it() -> None:
    """Rows of channels that fill no vector are read beyond their end."""
    x, dy = random(2, 3, 1, 5), random(2, 3, 1, 5, seed=1)
    x = x.at[:, 1, 0, 0].set(jnp.inf)
    dkernel = convolution.ENGINES["depthwise"].kernel_gradient(x, random(3, 3, 1, 5), dy, stride=1)[0]
    assert jnp.isfinite(dkernel[..., 1:]).all()


@pytest.mark.parametrize(("shape", "kernel_shape", "stride"), [CONVOLUTIONS[2], CONVOLUTIONS[5], CONVOLUTIONS[14]])
def test_float32_convolutions_are_exact(shape, kernel_shape, stride) -> None:
    x, kernel = (random(*s).astype(jnp.float32) for s in (shape, kernel_shape))
    conv = partial(convolution.conv2d, stride=stride, groups=shape[-1] // kernel_shape[2])
    y, pull_back = jax.vjp(conv, x, kernel)
    exact, exact_pull_back = jax.vjp(conv, x.astype(jnp.float64), kernel.astype(jnp.float64))
    found = [y, *pull_back(y)]
    truth = [exact, *exact_pull_back(y.astype(jnp.float64))]
    for a, b in zip(found, truth, strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b) < 3e-7


def forward(x, kernel):
    return convolution.conv2d(x, kernel, groups=4)


def test_it_runs_on_cpu_and_is_not_exported() -> None:
    x, kernel = random(2, 5, 5, 4), random(3, 3, 1, 4)
    lowered = jax.jit(forward).trace(x, kernel)
    assert "flax_shufflenet.depthwise" in lowered.lower(lowering_platforms=("cpu",)).as_text()
    assert "flax_shufflenet" not in lowered.lower(lowering_platforms=("cuda",)).as_text()
    exported = jax.export.export(jax.jit(forward), platforms=("cpu", "cuda"))(x, kernel)
    assert "custom_call" not in exported.mlir_module()
    check([exported.call(x, kernel)], [forward(x, kernel)])


def test_it_runs_where_each_device_computes_for_itself_and_not_where_xla_divides() -> None:
    mesh = jax.sharding.AbstractMesh((2,), ("batch",))
    divided, whole = (NamedSharding(mesh, P(*axes)) for axes in (("batch",), ()))
    x = jax.ShapeDtypeStruct((2, 5, 5, 4), jnp.float64, sharding=divided)
    kernel = jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float64, sharding=whole)
    specs = {"in_specs": (divided.spec, whole.spec), "out_specs": divided.spec}
    mapped = jax.shard_map(forward, mesh=mesh, check_vma=False, **specs)
    programs = [jax.jit(each).trace(x, kernel).lower(lowering_platforms=("cpu",)) for each in (mapped, forward)]
    assert ["flax_shufflenet.depthwise" in program.as_text() for program in programs] == [True, False]


def test_jax_knows_what_varies_among_devices() -> None:
    """It refuses what would be another on each device, and adds up the gradient of what is one on all."""
    x, kernel = random(2, 5, 5, 4), random(3, 3, 1, 4)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("batch",))
    specs = {"mesh": mesh, "in_specs": (P("batch"), P())}
    gradient = jax.jit(jax.shard_map(jax.grad(lambda x, k: forward(x, k).sum(), 1), out_specs=P(), **specs))
    program = gradient.trace(x, kernel).lower().as_text()
    assert "flax_shufflenet.depthwise_kernel_gradient" in program
    assert "all_reduce" in program
    check([gradient(x, kernel)], [jax.grad(lambda k: forward(x, k).sum())(kernel)])
    with pytest.raises(ValueError, match="out_specs which require replication"):
        jax.shard_map(forward, out_specs=P(), **specs)(x, kernel)


def test_it_runs_without_jit() -> None:
    x, kernel = random(2, 5, 5, 4), random(3, 3, 1, 4)
    with jax.disable_jit():
        found = forward(x, kernel)
    np.testing.assert_array_equal(found, forward(x, kernel))


@pytest.mark.parametrize(
    ("name", "shapes", "outcome", "options"),
    [
        ("depthwise", [(1, 4, 4, 3), (3, 3, 1, 4)], (1, 4, 4, 3), {"stride": 1}),
        ("depthwise", [(1, 4, 4, 3), (2, 2, 1, 3)], (1, 4, 4, 3), {"stride": 1}),
        ("depthwise", [(1, 4, 4, 3), (3, 3, 1, 3)], (1, 4, 4, 3), {"stride": 2}),
        ("depthwise", [(1, 4, 4, 3), (3, 3, 1, 3)], (1, 4, 4, 3), {"stride": 0}),
        ("depthwise", [(4, 4, 3), (3, 3, 1, 3)], (4, 4, 3), {"stride": 1}),
        ("depthwise_input_gradient", [(1, 4, 4, 3), (3, 3, 1, 3), (1, 4, 4, 3)], (1, 4, 5, 3), {"stride": 1}),
        ("depthwise_kernel_gradient", [(1, 4, 4, 3), (3, 3, 1, 3), (1, 4, 4, 3)], (3, 3, 1, 4), {"stride": 1}),
        ("stem", [(1, 4, 4, 5), (3, 3, 5, 8)], (1, 4, 4, 8), {"stride": 1}),
        ("stem_kernel_gradient", [(1, 4, 4, 3), (3, 3, 3, 8), (1, 4, 3, 8)], (3, 3, 3, 8), {"stride": 1}),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(name, shapes, outcome, options) -> None:
    ops.info()  # loads it
    options = {key: np.int64(value) for key, value in options.items()}
    call = jax.ffi.ffi_call(f"flax_shufflenet.{name}", jax.ShapeDtypeStruct(outcome, jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"flax_shufflenet engine: (depthwise|stem) needs"):
        call(*(jnp.zeros(shape, jnp.float32) for shape in shapes), **options)


def test_other_dtypes_are_refused_and_left_to_xla() -> None:
    x, kernel = jnp.zeros((1, 4, 4, 3), jnp.float16), jnp.zeros((3, 3, 1, 3), jnp.float16)
    call = jax.ffi.ffi_call("flax_shufflenet.depthwise", jax.ShapeDtypeStruct(x.shape, x.dtype))
    with pytest.raises(jax.errors.JaxRuntimeError, match="only float32, float64 and bfloat16"):
        call(x, kernel, stride=np.int64(1))
    assert convolution.conv2d(x, kernel, groups=3).dtype == jnp.float16


@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_processors_with_less_get_the_same(instructions) -> None:
    if instructions not in builds():
        pytest.skip("no AVX2 here")
    x, scale, bias, dy, *_ = batch_norm_arrays((3, 7, 5, 58))
    kernel = random(3, 3, 1, 58, seed=9)
    calls = {
        "batch_norm_statistics": ((x,), {"epsilon": 1e-5}),
        "batch_norm_gradient_sums": ((dy, x, scale, scale, scale, bias), {"relu": True}),
        "depthwise": ((x, kernel), {"stride": 1}),
        "depthwise_input_gradient": ((x, kernel, dy), {"stride": 1}),
        "depthwise_kernel_gradient": ((x, kernel, dy), {"stride": 1}),
    }
    for name, (arrays, options) in calls.items():
        check_operation(partial(run_build, instructions, name), native._references[name], *arrays, **options)


def test_another_build_than_that_of_the_sources_is_not_used(tmp_path, monkeypatch) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "engine.h").write_text("// changed")
    for path in native.FOLDER.glob("_engine_*"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    assert native.info.__wrapped__() == (False, "", "it was built from other sources")
    for path in tmp_path.glob("_engine_*"):
        path.unlink()
    assert native.info.__wrapped__() == (False, "", "it was not built")


def test_a_build_that_this_system_cannot_load_is_not_used(tmp_path, monkeypatch) -> None:
    """Such as one that was linked to a newer C++ library."""
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    (tmp_path / "_engine_baseline.so").write_bytes(b"no library")
    found = native.info.__wrapped__()
    assert not found.engine
    assert found.why.startswith("this system cannot load it: ")


def test_a_build_that_this_jaxlib_refuses_is_not_used(monkeypatch) -> None:
    def refuse(*_, **__):
        raise RuntimeError("another version of the interface\nand where it was found")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    assert native.info.__wrapped__() == (False, "", "this jaxlib refuses it: another version of the interface")
