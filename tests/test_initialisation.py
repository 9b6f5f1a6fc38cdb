"""A new net's weights come from the seed's distributions."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import flax_shufflenet as fs
import torch_ref
from flax_shufflenet.weights import flat_arrays


@pytest.fixture(scope="module")
def new_model() -> fs.ShuffleNetV2:
    return fs.ShuffleNetV2(fs.seed(1.0), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def new_net(new_model: fs.ShuffleNetV2) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flat_arrays(new_model).items()}


def kernels(net: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in net.items() if name.endswith("conv.kernel")}


def test_convolutions_have_kaimings_standard_deviation(new_net: dict[str, np.ndarray]) -> None:
    for name, kernel in kernels(new_net).items():
        height, width, _, out_channels = kernel.shape
        expected = np.sqrt(2 / (height * width * out_channels))
        # Five standard errors of a standard deviation estimated from so many numbers.
        assert kernel.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * kernel.size)), name
        assert abs(kernel.mean()) < 5 * expected / np.sqrt(kernel.size), name


def test_convolutions_are_normal_and_not_truncated(new_net: dict[str, np.ndarray]) -> None:
    scaled = np.concatenate([(kernel / kernel.std()).ravel() for kernel in kernels(new_net).values()])
    theirs = np.concatenate(
        [
            (module.weight / module.weight.std()).detach().numpy().ravel()
            for module in seeded_torch_net().modules()
            if isinstance(module, torch.nn.Conv2d)
        ]
    )
    assert np.abs(scaled).max() > 4  # a truncated normal stops near 2.3
    quantiles = np.linspace(0.001, 0.999, 99)
    np.testing.assert_allclose(np.quantile(scaled, quantiles), np.quantile(theirs, quantiles), atol=0.02)


def seeded_torch_net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch_ref.ShuffleNetV2(1.0)


def test_classifier_and_batch_norms(new_net: dict[str, np.ndarray]) -> None:
    kernel = new_net["classifier.kernel"]
    assert kernel.std() == pytest.approx(0.01, rel=5 / np.sqrt(2 * kernel.size))
    constants = {"scale": 1, "bias": 0, "mean": 0, "var": 1, "num_batches_tracked": 0}
    for name, array in new_net.items():
        kind = name.rpartition(".")[2]
        if kind in constants:
            assert (array == constants[kind]).all(), name


def test_no_two_kernels_share_numbers(new_net: dict[str, np.ndarray]) -> None:
    first_numbers = {float(kernel.ravel()[0]) for kernel in kernels(new_net).values()}
    assert len(first_numbers) == len(kernels(new_net))


def test_the_same_seed_gives_the_same_net_and_another_seed_another() -> None:
    small = fs.Architecture(stage_widths=(8, 16), stage_blocks=(1, 1), stem_width=4, last_width=24)
    nets = [flat_arrays(fs.ShuffleNetV2(small, rngs=nnx.Rngs(seed))) for seed in (0, 0, 1)]
    for name in nets[0]:
        first, again, other = (np.asarray(net[name]) for net in nets)
        np.testing.assert_array_equal(first, again)
        assert (first != other).all() or not name.endswith("kernel"), name


def test_no_two_arrays_share_a_buffer(new_model: fs.ShuffleNetV2) -> None:
    """A train step donates every array; a shared buffer would be donated twice."""
    leaves = jax.tree.leaves(nnx.state(new_model))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)
