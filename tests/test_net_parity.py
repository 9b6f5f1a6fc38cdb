"""The four sizes against PyTorch: outputs, gradients, statistics and training, to the bars of float64 and float32."""

import numpy as np
import optax
import parity_tools as tools
import pytest
import torch
import torch.nn.functional as F

import flax_shufflenet as fs
from convert import mapping
from convert.verify import relative_difference, relative_error

SIZES = (0.5, 1.0, 1.5, 2.0)
# The smallest net meets every batch and image size, the others an even and an odd one.
CASES = [
    *((0.5, batch, image) for batch in (2, 32) for image in ((32, 32), (64, 64), (33, 47))),
    *((size, *case) for size in SIZES[1:] for case in ((2, (33, 47)), (32, (32, 32)))),
]


def case_name(case: tuple) -> str:
    size, batch, (height, width) = case
    return f"{size}-batch{batch}-{height}x{width}"


class Measured:
    """Both nets' results on one batch, in float64 and in float32."""

    def __init__(self, size: float, batch: int, image: tuple[int, int]) -> None:
        shape = (batch, *image, 3)
        pair = tools.make_pair(fs.seed(size), shape)
        # Numbers that float32 holds exactly, so that both precisions see the same images.
        images = tools.random_images(*shape[:3]).astype(np.float32).astype(np.float64)
        labels = np.random.default_rng(1).integers(0, 10, batch)
        self.jax_64 = pair.run_jax("float64", images, labels)
        self.jax_32 = pair.run_jax("float32", images, labels)
        self.torch_64 = tools.run_torch(pair.layout, pair.architecture, pair.torch_net, images, labels)
        self.torch_32 = tools.run_torch(pair.layout, pair.architecture, pair.torch_net.float(), images, labels)
        pair.torch_net.double()


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


@pytest.mark.parametrize("kind", ["gradients", "statistics"])
def test_float32_gradients_and_statistics_are_as_exact_as_pytorchs(measured: Measured, kind: str) -> None:
    truth = getattr(measured.torch_64, kind)
    error = tools.pooled_error(getattr(measured.jax_32, kind), truth)
    assert error <= tools.FLOAT32_BAR * tools.pooled_error(getattr(measured.torch_32, kind), truth)


@pytest.mark.parametrize("size", SIZES)
def test_ten_sgd_steps_are_the_same_in_float64(size: float, float64: None) -> None:
    batch, steps = 32, 10
    pair = tools.make_pair(fs.seed(size), (batch, 32, 32, 3))
    random = np.random.default_rng(2)
    batches = [(random.standard_normal((batch, 32, 32, 3)), random.integers(0, 10, batch)) for _ in range(steps)]
    learning_rate, momentum, weight_decay = 0.02, 0.9, 5e-4

    # On a copy, since the pair is shared.
    torch_net = pair.layout.build_reference(pair.architecture).double()
    torch_net.load_state_dict(pair.torch_net.state_dict())
    torch_net.train()
    sgd = torch.optim.SGD(
        torch_net.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=True
    )
    for images, labels in batches:
        sgd.zero_grad()
        F.cross_entropy(torch_net(tools.to_nchw(images)), torch.from_numpy(labels)).backward()
        sgd.step()

    net, run = pair.jax_nets["float64"], pair.compiled["float64"]
    parameters, statistics = net.parameters, net.statistics
    optimiser = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum, nesterov=True)
    )
    state = optimiser.init(parameters)
    for images, labels in batches:
        _, _, gradients, statistics = run(parameters, statistics, images, labels)
        updates, state = optimiser.update(gradients, state, parameters)
        parameters = optax.apply_updates(parameters, updates)

    theirs = mapping.to_arrays(pair.layout, pair.architecture, torch_net.state_dict())
    ours = net.named(parameters, statistics)
    counts = {name for name in ours if name.endswith(".num_batches_tracked")}
    assert all(ours.pop(name) == theirs.pop(name) for name in counts)
    difference, name = tools.worst_difference(ours, theirs)
    assert difference <= tools.FLOAT64_BAR_AFTER_STEPS, name
