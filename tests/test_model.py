"""What a user of the net relies on: sizes, modes, dtypes, image sizes, and errors that say what is wrong."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import nnx

import flax_shufflenet as fs
from convert.proof.verify import FLOAT64_BAR, relative_difference, relative_error
from flax_shufflenet import functional
from flax_shufflenet.layers import ConvBN, Dropout
from flax_shufflenet.model import max_pool
from flax_shufflenet.weights import flat_arrays, from_arrays, shapes
from tests.net_tools import apply, new_net

pytestmark = pytest.mark.device

SMALL = fs.Architecture(stage_widths=(8, 16), stage_blocks=(1, 2), stem_width=4, last_width=24)


@pytest.fixture(scope="module")
def small() -> fs.ShuffleNetV2:
    model = fs.ShuffleNetV2(SMALL, rngs=nnx.Rngs(0))
    model.eval()
    return model


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users call: here the types and shapes in signatures are checked first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def images(batch: int, height: int = 32, width: int = 32) -> jax.Array:
    """From NumPy: JAX compiles its random numbers for each shape."""
    return jnp.asarray(np.random.default_rng(1).standard_normal((batch, height, width, 3)), jnp.float32)


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
    found = shapes(fs.preset(family, size)).items()
    statistics = (".mean", ".var", ".num_batches_tracked")
    assert sum(math.prod(shape) for name, shape in found if not name.endswith(statistics)) == parameters


@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 1), (7, 64), (33, 47)])
def test_takes_any_image_size(small: fs.ShuffleNetV2, height: int, width: int) -> None:
    assert apply(small, images(8, height, width)).shape == (8, 10)


def test_training_updates_statistics_and_eval_does_not() -> None:
    model = fs.ShuffleNetV2(SMALL, rngs=nnx.Rngs(0))
    before = np.asarray(model.last.bn.mean[...])
    apply(model, images(8))
    trained = np.asarray(model.last.bn.mean[...])
    assert (trained != before).any()
    assert int(model.last.bn.num_batches_tracked[...]) == 1
    model.eval()
    apply(model, images(8))
    np.testing.assert_array_equal(model.last.bn.mean[...], trained)
    view = nnx.view(model, use_running_average=False)
    assert not view.last.bn.use_running_average
    assert model.last.bn.use_running_average


def test_an_image_does_not_depend_on_its_batch_in_eval_mode(small: fs.ShuffleNetV2) -> None:
    batch = images(8)
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


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn])
def test_it_computes_in_floats_alone(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"bfloat16, float32 or float64, not (int32|bool|complex64|float8)"):
        fs.ShuffleNetV2(SMALL, dtype=dtype, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 8, 8, 4), (8, 8, 3), (2, 3, 8, 8)], ids=str)
@pytest.mark.usefixtures("unchecked_types")
def test_other_than_coloured_images_are_refused(small: fs.ShuffleNetV2, shape: tuple[int, ...]) -> None:
    message = rf"takes \[n, h, w, 3\], not {re.escape(str(shape))}"
    for net in (small, fs.fuse(small)):
        with pytest.raises(ValueError, match=message):
            net(jnp.zeros(shape))


def test_of_no_images_there_are_no_scores(small: fs.ShuffleNetV2) -> None:
    assert apply(small, images(0)).shape == fs.fuse(small)(images(0)).shape == (0, 10)


def test_a_net_is_divided_among_devices_and_put_together_again(small: fs.ShuffleNetV2) -> None:
    divided = nnx.view(small, axis_name="batch")
    assert nnx.view(divided, use_running_average=False, deterministic=False).last.bn.axis_name == "batch"
    whole = nnx.view(divided, axis_name=None)
    assert whole.last.bn.axis_name is whole.dropout.axis_name is None


def test_a_backbone_returns_its_features() -> None:
    backbone = fs.ShuffleNetV2(dataclasses.replace(SMALL, num_classes=0), rngs=nnx.Rngs(0))
    assert apply(backbone, images(2)).shape == (2, 24)


def test_a_net_may_end_after_its_last_stage() -> None:
    model = fs.ShuffleNetV2(dataclasses.replace(SMALL, last_width=0), rngs=nnx.Rngs(0))
    assert apply(model, images(2)).shape == (2, 10)
    model.eval()
    both = nnx.jit(lambda model, batch: (model.stage_features(batch), model.features(batch)))
    maps, features = both(model, images(2, 33, 47))
    assert [each.shape for each in maps] == [(2, 17, 24, 8), (2, 9, 12, 16)]
    np.testing.assert_allclose(features, maps[-1].mean((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [(2, 3), (16, 17), (5, 8)])
def test_both_max_pools_are_pytorchs(ceil: bool, size: tuple[int, int]) -> None:
    batch = images(2, *size)
    pool = torch.nn.MaxPool2d(3, stride=2, padding=0 if ceil else 1, ceil_mode=ceil)
    theirs = pool(torch.from_numpy(np.array(batch).transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(max_pool(batch, ceil=ceil), theirs)


def test_the_max_pool_without_padding_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="leaves nothing of a map of 1x5"):
        max_pool(images(1, 1, 5), ceil=True)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("train", [False, True])
def test_leaky_relus_and_epsilon_are_pytorchs_and_so_are_their_gradients(train: bool) -> None:
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    unit = ConvBN(3, 5, kernel_size=3, relu=True, negative_slope=0.1, bn_epsilon=1e-3, **options)
    unit.bn.bias.set_value(jnp.linspace(-1, 1, 5))
    batch = images(2, 6, 7).astype(jnp.float64) / 20
    kernel = torch.from_numpy(np.array(unit.conv.kernel[...]).transpose(3, 2, 0, 1))
    convolution, norm = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.BatchNorm2d(5, eps=1e-3)
    theirs = torch.nn.Sequential(convolution, norm, torch.nn.LeakyReLU(0.1)).double()
    convolution.weight.data, norm.bias.data = kernel, torch.linspace(-1, 1, 5, dtype=torch.float64)
    theirs.train(train)
    unit.train() if train else unit.eval()

    x = torch.from_numpy(np.array(batch).transpose(0, 3, 1, 2).copy()).requires_grad_()
    output = theirs(x)
    output.square().sum().backward()
    structure, parameters, statistics = functional.split(unit)

    @jax.jit
    def output_and_gradient(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        output, vjp = jax.vjp(lambda batch: structure.apply(parameters, statistics, batch)[0], batch)
        return output, *vjp(2 * output)

    ours, gradient = output_and_gradient(batch)
    assert x.grad is not None
    for one, other in ((ours, output.detach()), (gradient, x.grad)):
        assert relative_difference(np.asarray(one), other.numpy().transpose(0, 2, 3, 1)) <= FLOAT64_BAR


def test_dropout_needs_a_source_of_randomness_in_train_mode_only() -> None:
    architecture = fs.Architecture(stage_widths=(8,), stage_blocks=(0,), last_width=24, dropout=0.5)
    model = fs.ShuffleNetV2(architecture, rngs=nnx.Rngs(0))
    # One operation after the other, as in the README's example: the other tests compile.
    one, other = (model(images(4), rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert (one != other).any()
    with pytest.raises(ValueError, match="rngs"):
        model(images(4))
    model.eval()
    np.testing.assert_array_equal(model(images(4)), model(images(4)))


def test_dropout_keeps_the_mean() -> None:
    dropped = np.asarray(Dropout(0.25)(jnp.ones((100, 100)), rngs=nnx.Rngs(dropout=0)))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.02)  # four standard deviations
    np.testing.assert_array_equal(Dropout(0.0)(jnp.ones((2, 3)), rngs=None), np.ones((2, 3)))


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
        ({"negative_slope": float("nan")}, "negative_slope"),
        ({"negative_slope": 1.0}, "negative_slope"),
        ({"bn_epsilon": 0.0}, "bn_epsilon"),
        ({"stem_pool_ceil": True}, "this net has none"),
    ],
)
def test_impossible_nets_are_refused_with_the_reason(change: dict, message: str) -> None:
    fields: dict[str, Any] = {"stage_widths": (8, 16, 32), "stage_blocks": (1, 2, 1)}
    with pytest.raises(ValueError, match=message):
        fs.Architecture(**{**fields, **change})


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("shuffle", "befor", "after, before, reverse"),
        ("down_left", "inputs", "half, input"),
        ("down_middle", None, "half, input"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_other_choices_are_refused_with_those_that_there_are(field: str, value: Any, choices: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be one of {choices}, not {value!r}"):
        dataclasses.replace(SMALL, **{field: value})


def test_numpys_numbers_are_pythons() -> None:
    architecture = dataclasses.replace(SMALL, bn_epsilon=np.float64(1e-3))
    assert type(architecture.bn_epsilon) is float
    assert apply(fs.ShuffleNetV2(architecture, rngs=nnx.Rngs(0)), images(2)).shape == (2, 10)


def test_unknown_sizes_and_families_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"0\.5, 1\.0, 1\.5, 2\.0, not 3\.0"):
        fs.seed(3.0)
    with pytest.raises(ValueError, match="seed, kuangliu"):
        fs.preset("resnet")


def fields_of_an_earlier_version() -> dict[str, Any]:
    """SMALL's, without those that the first saved nets did not have."""
    fields = json.loads(SMALL.to_json())
    for name in ("stem_kernel", "stem_pool_ceil", "down_kernel", "basic_kernel", "negative_slope", "bn_epsilon"):
        del fields[name]
    return fields


def test_an_architecture_written_before_a_field_existed_has_its_default() -> None:
    fields = fields_of_an_earlier_version()
    assert fs.Architecture.from_json(json.dumps(fields)) == SMALL
    del fields["pool_size"]
    with pytest.raises(ValueError, match="an architecture has the fields"):
        fs.Architecture.from_json(json.dumps(fields))


def test_a_net_that_an_earlier_version_saved_loads(tmp_path: Path) -> None:
    model = new_net(SMALL)
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    safetensors.numpy.save_file(
        arrays, tmp_path / "net.safetensors", {"architecture": json.dumps(fields_of_an_earlier_version())}
    )
    loaded = fs.load(tmp_path / "net.safetensors")
    assert loaded.architecture == SMALL
    assert all(np.array_equal(np.asarray(array), arrays[name]) for name, array in flat_arrays(loaded).items())


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
