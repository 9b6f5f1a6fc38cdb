"""The four sizes against PyTorch: outputs, gradients, statistics and training, to the bars of float64 and float32."""

import numpy as np
import optax
import parity_tools as tools
import pytest
import torch
import torch.nn.functional as F

import flax_shufflenet as fs
from convert.verify import relative_difference, relative_error

# Each size meets a batch of 2 and one of 32; the images differ between the sizes, since each case compiles for long.
SMALL_BATCHES = {size: (size, 2, (64, 64) if size == 1.0 else (33, 47)) for size in (0.5, 1.0, 1.5, 2.0)}
CASES = [*SMALL_BATCHES.values(), *((size, 32, (32, 32)) for size in SMALL_BATCHES)]


def case_name(case: tuple) -> str:
    size, batch, (height, width) = case
    return f"{size}-batch{batch}-{height}x{width}"


class Measured:
    """Both nets' results on one batch, in float64 and in float32."""

    def __init__(self, size: float, batch: int, image: tuple[int, int]) -> None:
        pair = tools.make_pair(fs.seed(size), (batch, *image, 3))
        # Numbers that float32 holds exactly, so that both precisions see the same images.
        images = tools.random_images(batch, *image).astype(np.float32).astype(np.float64)
        labels = np.random.default_rng(1).integers(0, 10, batch)
        tensors = tools.random_tensors(pair)
        self.jax_64 = pair.run_jax("float64", tensors, images, labels)
        self.jax_32 = pair.run_jax("float32", tensors, images, labels)
        self.torch_64 = pair.run_torch("float64", tensors, images, labels)
        self.torch_32 = pair.run_torch("float32", tensors, images, labels)
        tensors = tools.random_tensors_far_from_kinks(pair)
        self.smooth_gradients_jax_32 = pair.run_jax("float32", tensors, images, labels).gradients
        self.smooth_gradients_torch_64 = pair.run_torch("float64", tensors, images, labels).gradients
        self.smooth_gradients_torch_32 = pair.run_torch("float32", tensors, images, labels).gradients


_MEASURED: dict[tuple, Measured] = {}


@pytest.fixture(params=CASES, ids=case_name)
def measured(request: pytest.FixtureRequest, float64: None) -> Measured:
    if request.param not in _MEASURED:
        _MEASURED[request.param] = Measured(*request.param)
    return _MEASURED[request.param]


@pytest.mark.parametrize("output", ["eval_output", "train_output"])
def test_outputs_are_the_same_in_float64(measured: Measured, output: str) -> None:
    difference = relative_difference(getattr(measured.jax_64, output), getattr(measured.torch_64, output))
    assert difference <= tools.FLOAT64_BAR


@pytest.mark.parametrize("kind", ["gradients", "statistics"])
def test_every_gradient_and_statistic_is_the_same_in_float64(measured: Measured, kind: str) -> None:
    difference, name = tools.worst_difference(getattr(measured.jax_64, kind), getattr(measured.torch_64, kind))
    assert difference <= tools.FLOAT64_BAR, name


@pytest.mark.parametrize("output", ["eval_output", "train_output"])
def test_float32_outputs_are_as_exact_as_pytorchs(measured: Measured, output: str) -> None:
    truth = getattr(measured.torch_64, output)
    error = relative_error(getattr(measured.jax_32, output), truth)
    assert error <= tools.FLOAT32_BAR * relative_error(getattr(measured.torch_32, output), truth)


def test_float32_statistics_are_as_exact_as_pytorchs(measured: Measured) -> None:
    truth = measured.torch_64.statistics
    error = tools.pooled_error(measured.jax_32.statistics, truth)
    assert error <= tools.FLOAT32_BAR * tools.pooled_error(measured.torch_32.statistics, truth)


def test_float32_gradients_away_from_kinks_are_as_exact_as_pytorchs(measured: Measured) -> None:
    truth = measured.smooth_gradients_torch_64
    error = tools.pooled_error(measured.smooth_gradients_jax_32, truth)
    assert error <= tools.FLOAT32_BAR * tools.pooled_error(measured.smooth_gradients_torch_32, truth)


@pytest.mark.parametrize("case", SMALL_BATCHES.values(), ids=case_name)
def test_ten_sgd_steps_are_the_same_in_float64(case: tuple, float64: None) -> None:
    steps, (size, batch, image) = 10, case
    pair = tools.make_pair(fs.seed(size), (batch, *image, 3))
    random = np.random.default_rng(2)
    batches = [(random.standard_normal((batch, *image, 3)), random.integers(0, 10, batch)) for _ in range(steps)]
    # At ten times this rate, ten steps on two images are chaotic, and rounding in float64 is no longer small.
    learning_rate, momentum, weight_decay = 0.002, 0.9, 5e-4
    tensors = tools.random_tensors(pair)

    torch_net = pair.torch_net.double()
    torch_net.load_state_dict(tensors)
    torch_net.train()
    sgd = torch.optim.SGD(
        torch_net.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=True
    )
    for images, labels in batches:
        sgd.zero_grad()
        F.cross_entropy(torch_net(tools.to_nchw(images)), torch.from_numpy(labels)).backward()
        sgd.step()

    net, run = pair.jax_nets["float64"], pair.compiled["float64"]
    parameters, statistics = net.split(pair.arrays(tensors))
    optimiser = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum, nesterov=True)
    )
    state = optimiser.init(parameters)
    for images, labels in batches:
        _, _, gradients, statistics = run(parameters, statistics, images, labels)
        updates, state = optimiser.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)

    theirs = pair.arrays(torch_net.state_dict())
    ours = net.named(parameters, statistics)
    counts = {name for name in ours if name.endswith(".num_batches_tracked")}
    assert all(ours.pop(name) == theirs.pop(name) for name in counts)
    difference, name = tools.worst_difference(ours, theirs)
    assert difference <= tools.FLOAT64_BAR_AFTER_STEPS, name
