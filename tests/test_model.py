"""What a user of the net relies on: sizes, modes, dtypes, image sizes, and errors that say what is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_shufflenet as fs
from convert.verify import relative_error
from flax_shufflenet.weights import flat_arrays, from_arrays

pytestmark = pytest.mark.usefixtures("unoptimised")

SMALL = fs.Architecture(stage_widths=(8, 16), stage_blocks=(1, 2), stem_width=4, last_width=24)


@pytest.fixture(scope="module")
def small() -> fs.ShuffleNetV2:
    model = fs.ShuffleNetV2(SMALL, rngs=nnx.Rngs(0))
    model.eval()
    return model


@nnx.jit
def apply(model: fs.ShuffleNetV2, batch: jax.Array) -> jax.Array:
    """Compiled as one: one operation after the other would be compiled for seconds."""
    return model(batch)


def images(batch: int, height: int = 32, width: int = 32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, height, width, 3))


@pytest.mark.parametrize(
    ("family", "size", "parameters"),
    [
        ("seed", 0.5, 352_042),
        ("seed", 1.0, 1_263_854),
        ("seed", 1.5, 2_488_874),
        ("seed", 2.0, 5_338_026),
        ("chenyaofo", 2.0, 5_365_486),
        ("torchvision", 0.5, 1_366_792),
        ("torchvision", 1.0, 2_278_604),
        ("torchvision", 1.5, 3_503_624),
        ("torchvision", 2.0, 7_393_996),
    ],
)
def test_sizes_have_the_published_parameter_counts(family: str, size: float, parameters: int) -> None:
    model = nnx.eval_shape(lambda: fs.ShuffleNetV2(fs.preset(family, size), rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 1), (7, 64), (33, 47)])
def test_takes_any_image_size(small: fs.ShuffleNetV2, height: int, width: int) -> None:
    assert apply(small, images(2, height, width)).shape == (2, 10)


def test_training_updates_statistics_and_eval_does_not() -> None:
    model = fs.ShuffleNetV2(SMALL, rngs=nnx.Rngs(0))
    before = np.asarray(model.last.bn.mean[...])
    apply(model, images(4))
    trained = np.asarray(model.last.bn.mean[...])
    assert (trained != before).any()
    assert int(model.last.bn.num_batches_tracked[...]) == 1
    model.eval()
    apply(model, images(4))
    np.testing.assert_array_equal(model.last.bn.mean[...], trained)
    view = nnx.view(model, use_running_average=False)
    assert not view.last.bn.use_running_average
    assert model.last.bn.use_running_average


def test_an_image_does_not_depend_on_its_batch_in_eval_mode(small: fs.ShuffleNetV2) -> None:
    batch = images(3)
    np.testing.assert_allclose(apply(small, batch)[1:2], apply(small, batch[1:2]), rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_in_half_and_keeps_parameters_and_statistics_in_float32(small: fs.ShuffleNetV2) -> None:
    arrays = {name: np.asarray(array) for name, array in flat_arrays(small).items()}
    half = from_arrays(SMALL, arrays, dtype=jnp.bfloat16)
    output = apply(half, images(8))
    assert output.dtype == jnp.bfloat16
    # 8 bits of mantissa through a dozen layers
    assert relative_error(np.asarray(output, np.float32), np.asarray(apply(small, images(8)), np.float64)) < 0.05
    half.train()
    apply(half, images(8))
    floats = {array.dtype for array in flat_arrays(half).values() if jnp.issubdtype(array.dtype, jnp.floating)}
    assert floats == {jnp.dtype(jnp.float32)}


def test_float64_needs_to_be_enabled() -> None:
    with pytest.raises(ValueError, match="jax_enable_x64"):
        fs.ShuffleNetV2(SMALL, dtype=jnp.float64, rngs=nnx.Rngs(0))
    with jax.enable_x64(True):
        model = fs.ShuffleNetV2(SMALL, dtype=jnp.float64, rngs=nnx.Rngs(0))
        assert apply(model, images(2).astype(jnp.float64)).dtype == jnp.float64


def test_a_backbone_returns_its_features() -> None:
    backbone = fs.ShuffleNetV2(dataclasses.replace(SMALL, num_classes=0), rngs=nnx.Rngs(0))
    assert apply(backbone, images(2)).shape == (2, 24)


def test_dropout_needs_a_source_of_randomness_in_train_mode_only() -> None:
    architecture = fs.Architecture(stage_widths=(8,), stage_blocks=(0,), last_width=24, dropout=0.5)
    model = fs.ShuffleNetV2(architecture, rngs=nnx.Rngs(0))
    one, other = (model(images(4), rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert (one != other).any()
    with pytest.raises(ValueError, match="rngs"):
        model(images(4))
    model.eval()
    np.testing.assert_array_equal(model(images(4)), model(images(4)))


def test_fixed_pooling_says_which_images_it_takes() -> None:
    model = fs.ShuffleNetV2(
        fs.Architecture(stage_widths=(8,), stage_blocks=(0,), last_width=24, pool_size=4),
        rngs=nnx.Rngs(0),
    )
    assert apply(model, images(2, 10, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="8x8 values are left"):
        apply(model, images(2, 16, 16))


@pytest.mark.usefixtures("optimised")
def test_float32_outputs_at_default_precision_choose_the_same_classes(small: fs.ShuffleNetV2) -> None:
    """On accelerators the default precision is lower than float32's; on CPU it is the same."""
    batch = images(64)
    with jax.default_matmul_precision("highest"):
        exact = apply(small, batch)
    output = apply(small, batch)
    assert (jnp.argmax(output, -1) == jnp.argmax(exact, -1)).mean() >= 0.95
    assert relative_error(np.asarray(output), np.asarray(exact, np.float64)) <= 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_widths": (8, 15, 32)}, "must be even"),
        ({"stage_widths": (8, 16)}, "same number of stages"),
        ({"num_classes": -1}, "num_classes must be at least 0"),
        ({"shuffle_groups": 3}, "not divisible by shuffle_groups"),
        ({"split_ratio": 1.0}, "leaves one half"),
        ({"split_ratio": 0.01}, "leaves one half"),
        ({"dropout": 1.0}, "dropout"),
        ({"stage_blocks": (1, -1, 1)}, "stage_blocks"),
        ({"down_left": "input", "stem_width": 8}, "leaves nothing"),
        ({"shuffle": "before", "split_ratio": 0.25}, "even and odd"),
    ],
)
def test_impossible_nets_are_refused_with_the_reason(change: dict, message: str) -> None:
    fields = {"stage_widths": (8, 16, 32), "stage_blocks": (1, 2, 1)}
    with pytest.raises(ValueError, match=message):
        fs.Architecture(**{**fields, **change})


def test_unknown_sizes_and_families_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"0\.5, 1\.0, 1\.5, 2\.0, not 3\.0"):
        fs.seed(3.0)
    with pytest.raises(ValueError, match="seed, kuangliu"):
        fs.preset("resnet")


@pytest.mark.parametrize("family", fs.FAMILIES)
def test_an_architecture_survives_json(family: str) -> None:
    architecture = fs.preset(family, 2.0)
    assert fs.Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "not json",
        SMALL.to_json().replace("24", '"24"'),
        SMALL.to_json().replace("true", "1"),
        SMALL.to_json().replace('"after"', '"sideways"'),
        SMALL.to_json().replace("[8, 16]", "[8, 15]"),
        SMALL.to_json().replace("}", ', "extra": 1}'),
    ],
)
def test_a_damaged_architecture_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, json's and the architecture's own messages differ
        fs.Architecture.from_json(text)
