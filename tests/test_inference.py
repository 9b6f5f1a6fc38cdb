"""The fused net: the same function as the model in eval mode, whatever the architecture, dtype and image size."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compiling
from flax import nnx
from parity_tools import FLOAT32_BAR, random_images

import flax_shufflenet as fs
from convert.proof.verify import relative_difference, relative_error
from flax_shufflenet import ops
from flax_shufflenet.ops import branch
from flax_shufflenet.ops.branch import Layer
from flax_shufflenet.weights import cast_floats, flat_arrays, from_arrays
from tests.net_tools import random_net

pytestmark = pytest.mark.device

SMALL = fs.Architecture(stage_widths=(8, 16), stage_blocks=(3, 2), stem_width=4, last_width=24)


def small(family: str, **changes) -> fs.Architecture:
    fields: dict[str, Any] = {"stage_widths": (12, 16), "stage_blocks": (3, 1), "stem_width": 4, "last_width": 24}
    return fs.Architecture(**fs.architecture.family_fields(family) | fields | {"num_classes": 5} | changes)


ARCHITECTURES = {
    **{family: small(family) for family in fs.FAMILIES},
    "split": small("seed", split_ratio=0.3),
    "wide split": small("seed", split_ratio=0.8, shuffle_groups=4),
    "no shuffle": small("seed", shuffle_groups=1, split_ratio=0.4),
    "left of input width": small("seed", down_left="input"),
    "middle of input width": small("seed", down_middle="input"),
    "before, other halves": small("megvii", stage_widths=(10, 26), pool_size=0),
    "backbone": small("seed", num_classes=0),
    "no last convolution": small("seed", last_width=0),
    "no last convolution, no head": small("megvii", last_width=0, num_classes=0, pool_size=0),
    "shuffled the other way round": small("seed", shuffle="reverse", last_width=0, num_classes=0),
    "LeakyReLU": small("weiaicunzai", negative_slope=0.1, bn_epsilon=0.1, stem_relu=True),
    "no basic blocks": small("seed", stage_blocks=(0, 0), dropout=0.5),
    "one stage": small("kuangliu", stage_widths=(6,), stage_blocks=(5,), stem_width=1, stem_stride=3),
}


def run(model: fs.ShuffleNetV2, images: jax.Array, compiler_options: dict | None = None) -> jax.Array:
    """Compiled as the tests do, unless it matters how exact float32 is."""
    return jax.jit(model, compiler_options=compiler_options)(images)


def size_for(architecture: fs.Architecture) -> tuple[int, int]:
    """An odd size, and one that leaves a window of the last pooling more rows than columns."""
    shrinking = architecture.stem_stride * 2 ** (len(architecture.stage_widths) + architecture.stem_pool)
    if architecture.pool_size:
        return shrinking * (architecture.pool_size + 1), shrinking * architecture.pool_size - 1
    return 19, 23


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_is_the_same_function_in_float64(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = random_net(architecture, "float64")
    images = jnp.asarray(random_images(2, *size_for(architecture)))
    fused = fs.fuse(model)(images)
    assert fused.dtype == jnp.float64
    assert relative_difference(np.asarray(fused), np.asarray(run(model, images))) <= 1e-12


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 1, 1), (7, 160, 96), (4, 256, 128)])
def test_blocks_of_a_batch_make_no_difference(batch: int, height: int, width: int) -> None:
    model = random_net(SMALL, "float64")
    images = jnp.asarray(random_images(batch, height, width))
    assert relative_difference(np.asarray(fs.fuse(model)(images)), np.asarray(run(model, images))) <= 1e-12


@pytest.mark.usefixtures("optimised")
def test_float32_is_as_exact_as_the_model() -> None:
    architecture = fs.seed(0.5)
    images = random_images(16, 32, 32)
    model = random_net(architecture)
    in_float32 = jnp.asarray(images, jnp.float32)
    with jax.default_matmul_precision("highest"):
        fused, own = fs.fuse(model)(in_float32), run(model, in_float32, quick_compiling.AS_USERS_DO)
    with jax.enable_x64(True):
        arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
        truth = fs.fuse(from_arrays(architecture, cast_floats(arrays, np.float64), dtype=jnp.float64))(
            jnp.asarray(np.asarray(in_float32, np.float64))
        )
    assert fused.dtype == jnp.float32
    own_error, error = (relative_error(np.asarray(output), np.asarray(truth)) for output in (own, fused))
    assert error <= FLOAT32_BAR * own_error


@pytest.mark.usefixtures("optimised")
def test_bfloat16_is_as_close_as_the_model() -> None:
    images = jnp.asarray(random_images(8, 32, 32), jnp.float32)
    truth = np.asarray(run(random_net(SMALL), images), np.float64)
    half = random_net(SMALL, "bfloat16")
    fused = fs.fuse(half)(images)
    assert fused.dtype == jnp.bfloat16
    own = run(half, images, quick_compiling.AS_USERS_DO)
    own_error, error = (relative_error(np.asarray(output, np.float32), truth) for output in (own, fused))
    assert error <= 2 * own_error


def test_is_a_snapshot_in_eval_mode() -> None:
    model = random_net(SMALL)
    images = jnp.asarray(random_images(4, 32, 32), jnp.float32)
    expected = np.asarray(run(model, images))
    model.train()  # the mode makes no difference
    fused = fs.fuse(model)
    for array in jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        array.delete()  # as a training step does with donated arrays
    np.testing.assert_allclose(fused(images), expected, rtol=1e-4, atol=1e-5)


def test_it_survives_pickling() -> None:
    fused = fs.fuse(random_net(SMALL))
    images = jnp.asarray(random_images(2, 32, 32), jnp.float32)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fused))(images), fused(images))


def test_a_numpy_batch_does() -> None:
    images = random_images(2, 32, 32).astype(np.float32)
    fused = fs.fuse(random_net(SMALL))
    np.testing.assert_array_equal(fused(images), fused(jnp.asarray(images)))


def test_fixed_pooling_says_which_images_it_takes() -> None:
    fused = fs.fuse(random_net(small("kuangliu")))
    with pytest.raises(ValueError, match="8x8 values are left"):
        fused(jnp.zeros((2, 32, 32, 3)))


def test_is_part_of_a_larger_program() -> None:
    fused = fs.fuse(random_net(SMALL))
    images = jnp.asarray(random_images(2, 32, 32), jnp.float32)
    doubled = jax.jit(lambda images: 2 * fused(images))(images)
    np.testing.assert_allclose(doubled, 2 * fused(images), rtol=1e-5, atol=1e-6)


def test_other_platforms_keep_their_own_convolutions() -> None:
    fused = fs.fuse(random_net(SMALL))
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    units = 2 + sum(5 + 3 * blocks for blocks in SMALL.stage_blocks)
    for platform, convolutions in (("cpu", 0), ("cuda", units), ("tpu", units)):
        text = jax.export.export(jax.jit(fused), platforms=[platform])(images).mlir_module()
        # Equal convolutions are one function that is called several times.
        native = {
            line.split("@")[1].split("(")[0] for line in text.split("func.func ") if "stablehlo.convolution" in line
        }
        assert sum(text.count(f"call @{name}(") for name in native) == convolutions, platform
        assert ("stablehlo.while" in text) == (platform == "cpu")


def test_one_export_serves_all_platforms_and_batches() -> None:
    fused = fs.fuse(random_net(SMALL))
    images = jnp.asarray(random_images(2, 32, 32), jnp.float32)
    any_batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n,32,32,3"), jnp.float32)
    exported = jax.export.export(jax.jit(fused), platforms=["cpu", "cuda", "tpu"])(any_batch)
    np.testing.assert_allclose(exported.call(images), fused(images), rtol=1e-4, atol=1e-5)


def layers(kinds: str, **changes) -> list[Layer]:
    """Of 4 channels: "d"epthwise, "p"ointwise, "r", pointwise with a ReLU, or "c", a dense convolution of 3x3."""
    shapes = {"d": (3, 3, 1, 4), "c": (3, 3, 4, 4)}
    made = []
    for kind in kinds:
        kernel = np.ones(shapes.get(kind, (1, 1, 4, 4)), np.float32)
        made.append(Layer(kernel, np.ones(4, np.float32), 1, 4 if kind == "d" else 1, kind == "r")._replace(**changes))
    return made


@pytest.mark.skipif(not ops.info().engine, reason=f"the CPU engine is not used: {ops.info().why}")
def test_the_engine_is_given_only_branches_that_it_knows() -> None:
    maps = [jnp.ones((1, 2, 2, 4))]
    for known in ("d", "p", "r", "dr", "pd", "rdr"):
        assert branch.applies(maps, layers(known)), known
    for other in ("", "c", "dd", "pp", "rr", "dpd", "pdpd", "dc"):
        assert not branch.applies(maps, layers(other)), other
    for kinds, change in (("d", {"relu": True}), ("p", {"stride": 2}), ("r", {"negative_slope": 0.1}),
                          ("d", {"groups": 2}), ("p", {"bias": np.ones(4)})):  # fmt: skip
        assert not branch.applies(maps, layers(kinds, **change)), (kinds, change)
