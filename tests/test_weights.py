"""Saving and loading: every bit comes back, half-written files never exist, and damage is named."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import flax_shufflenet as fs
from flax_shufflenet.weights import flat_arrays, from_arrays
from tests.net_tools import apply

pytestmark = pytest.mark.device

SMALL = fs.Architecture(stage_widths=(8, 16), stage_blocks=(1, 0), stem_width=4, last_width=24)


def images(batch: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, 16, 16, 3)), jnp.float32)


@pytest.fixture(scope="module")
def trained() -> fs.ShuffleNetV2:
    model = fs.ShuffleNetV2(SMALL, rngs=nnx.Rngs(0))
    apply(model, images(4, seed=0))  # statistics that are not the fresh ones
    return model


@pytest.fixture
def model(trained: fs.ShuffleNetV2) -> fs.ShuffleNetV2:
    """Its own, to be changed."""
    return nnx.clone(trained)


@pytest.fixture
def saved(model: fs.ShuffleNetV2, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    fs.save(model, path, {"dataset": "none"})
    return path


def test_every_array_and_the_architecture_come_back_in_eval_mode(model: fs.ShuffleNetV2, saved: Path) -> None:
    loaded = fs.load(saved)
    assert loaded.architecture == SMALL
    assert loaded.stem.bn.use_running_average
    arrays, loaded_arrays = flat_arrays(model), flat_arrays(loaded)
    assert arrays.keys() == loaded_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded_arrays[name], array, err_msg=name)
        assert loaded_arrays[name].dtype == array.dtype
    model.eval()
    batch = images(2, seed=1)
    np.testing.assert_array_equal(apply(loaded, batch), apply(model, batch))


def test_a_loaded_net_can_be_trained_on(saved: Path) -> None:
    loaded = fs.load(saved)
    loaded.train()
    before = np.asarray(loaded.stem.bn.mean[...])
    apply(loaded, jnp.ones((4, 16, 16, 3)))
    assert (np.asarray(loaded.stem.bn.mean[...]) != before).any()


def test_metadata_is_kept_beside_the_architecture(saved: Path) -> None:
    metadata = fs.read_metadata(saved)
    assert metadata["dataset"] == "none"
    assert json.loads(metadata["architecture"])["stage_widths"] == [8, 16]


def test_what_could_not_be_loaded_is_not_saved(model: fs.ShuffleNetV2, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    half = nnx.clone(model)
    nnx.update(half, jax.tree.map(lambda value: value.astype(jnp.bfloat16), nnx.state(half, nnx.Param)))
    with pytest.raises(ValueError, match=r"net.safetensors is not written, .* weights are bfloat16 and float32,"):
        fs.save(half, path)
    linear = nnx.Linear(24, 5, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    setattr(model, "classifier", linear)  # noqa: B010, another class
    with pytest.raises(ValueError, match=r"another net: classifier.bias has shape \[5\], not \[10\]"):
        fs.save(model, path)
    assert not path.exists()
    model.architecture = dataclasses.replace(model.architecture, num_classes=5)
    fs.save(model, path)
    assert apply(fs.load(path), images(1, seed=0)).shape == (1, 5)


def test_dtype_is_chosen_when_loading(saved: Path) -> None:
    assert apply(fs.load(saved, dtype=jnp.bfloat16), jnp.ones((1, 16, 16, 3))).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = fs.load(saved, dtype=jnp.float64)
        assert wide.stem.conv.kernel[...].dtype == jnp.float64
        fs.save(wide, saved)
        assert fs.load(saved).stem.conv.kernel[...].dtype == jnp.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        fs.load(saved)
    assert fs.load(saved, dtype=jnp.float32).stem.conv.kernel[...].dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype must be a floating-point one, such as float32, not int8"):
        fs.load(saved, dtype="int8")


def test_missing_unknown_and_misshaped_arrays_are_named(model: fs.ShuffleNetV2) -> None:
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    for change, message in (
        ({"stem.conv.kernel": None}, "stem.conv.kernel is missing"),
        ({"extra": np.zeros(1)}, "extra is not part of this net"),
        ({"stem.bn.mean": np.zeros(5, np.float32)}, r"stem.bn.mean has shape \[5\], not \[4\]"),
        ({"stem.bn.mean": np.zeros(4, np.float16)}, "stem.bn.mean is float16, not float32"),
    ):
        changed = {name: array for name, array in {**arrays, **change}.items() if array is not None}
        with pytest.raises(ValueError, match=message):
            from_arrays(SMALL, changed)


def test_files_that_are_not_ours_are_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        fs.load(tmp_path / "nothing")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3)}, foreign)
    with pytest.raises(ValueError, match=r"foreign.*no architecture"):
        fs.load(foreign)
    whole = saved.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"x" * 100, whole.replace(b"shuffle_groups", b"shuffle_grouse")):
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"net\.safetensors"):
            fs.load(saved)


def test_a_file_of_numbers_that_numpy_does_not_have(saved: Path) -> None:
    data = saved.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    entries = json.loads(header)
    for entry in entries.values():
        if entry.get("dtype") == "F32":
            entry |= {"dtype": "F8_E4M3", "shape": [4, *entry["shape"]]}
    changed = json.dumps(entries).encode()
    saved.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + len(header) :])
    with pytest.raises(ValueError, match=r"net\.safetensors: holds F8_E4M3, I32; a net's weights are all float32 or"):
        fs.load(saved)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("stage_blocks", [200_000, 1], "more blocks than the file has arrays"),
        ("stage_widths", [2**40, 2**41], "a net of these widths has more than"),
        ("stage_widths", [10**400, 2 * 10**400], "a width beyond all measure"),
        ("num_classes", 10**12, "a net of these widths has more than"),
    ],
)
def test_a_file_that_claims_a_net_beyond_all_measure(saved: Path, field: str, value: object, reason: str) -> None:
    """Refused at once; merely building it would take minutes."""
    arrays = safetensors.numpy.load_file(saved)
    described = json.loads(fs.read_metadata(saved)["architecture"])
    safetensors.numpy.save_file(arrays, saved, {"architecture": json.dumps(described | {field: value})})
    with pytest.raises(ValueError, match=rf"net\.safetensors: .*{reason}"):
        fs.load(saved)
