"""What a step does with the gradients, and the learning rate of each step."""

from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from flax_shufflenet import Architecture
from flax_shufflenet.errors import OptionError
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.optimizer import make_optimizer, make_schedule
from flax_shufflenet.training.recipe import describe
from tests.net_tools import new_net

TINY = Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)
MUON = Config(
    optimizer="muon", muon_learning_rate=0.3, muon_weight_decay=0.5, learning_rate=0.2, weight_decay=0.1, momentum=0.5
)


def parameters_by_name(dtype=jnp.float32):
    """In the order of the state that a step has."""
    flat = nnx.to_flat_state(nnx.state(new_net(TINY, dtype=dtype), nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in flat}


def test_the_schedule_is_a_cosine_from_the_learning_rate_to_zero():
    schedule = make_schedule(Config(learning_rate=0.3), 100)
    rates = [float(np.asarray(schedule(step))) for step in range(101)]
    np.testing.assert_allclose(rates, [0.15 * (1 + np.cos(np.pi * step / 100)) for step in range(101)], atol=1e-7)


def test_a_warm_up_rises_in_equal_steps_from_above_zero_and_the_cosine_takes_the_rest():
    config = Config(learning_rate=0.3, warmup_epochs=0.5, epochs=5)
    schedule = make_schedule(config, 100)
    rates = [float(np.asarray(schedule(step))) for step in range(101)]
    np.testing.assert_allclose(rates[:10], [0.3 * (step + 1) / 11 for step in range(10)], atol=1e-7)
    np.testing.assert_allclose(rates[10:], [0.15 * (1 + np.cos(np.pi * step / 90)) for step in range(91)], atol=1e-7)


def test_biases_and_batch_normalisation_are_not_decayed_where_kernels_alone_are():
    config = Config(learning_rate=0.5, weight_decay=0.1, momentum=0.0, decayed="kernels")
    parameters = parameters_by_name()
    optimizer, leaves = make_optimizer(config, 10), [*map(jnp.asarray, parameters.values())]
    zeros = [jnp.zeros_like(leaf) for leaf in leaves]
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(leaves), leaves)
    assert {name.rpartition(".")[2] for name in parameters} == {"kernel", "scale", "bias"}
    for (name, parameter), update in zip(parameters.items(), jax.tree.leaves(updates), strict=True):
        expected = parameter * (-0.05 if name.endswith("kernel") else 0)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_momentum_zero_is_plain_sgd():
    parameters, gradients = [jnp.array([2.0, -1.0])], [jnp.array([0.5, 0.25])]
    optimizer = make_optimizer(Config(momentum=0.0, learning_rate=0.1, weight_decay=0.5), 10)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    (update,) = jax.tree.leaves(updates)
    np.testing.assert_allclose(update, [-0.1 * (0.5 + 0.5 * 2), -0.1 * (0.25 - 0.5)], rtol=1e-6)


def test_muon_takes_the_1x1_kernels_and_sgd_the_rest(float64):
    """One step from zero momentum: SGD's is 1 + momentum times its decayed gradient, Muon's that of PyTorch."""
    parameters = parameters_by_name(jnp.float64)
    random = np.random.default_rng(0)
    gradients = {name: random.normal(0, 50, parameter.shape) for name, parameter in parameters.items()}
    optimizer = make_optimizer(MUON, 10)
    leaves = [*map(jnp.asarray, parameters.values())]
    updates, _ = jax.jit(optimizer.update)([*gradients.values()], optimizer.init(leaves), leaves)
    by_muon = {name for name, parameter in parameters.items() if parameter.shape[:2] == (1, 1)}
    assert by_muon == {
        *(f"stages.0.0.{branch}.conv.kernel" for branch in ("left.1", "right.0", "right.2")),
        *(f"stages.0.1.branch.{number}.conv.kernel" for number in (0, 2)),
        "last.conv.kernel",
    }
    for (name, parameter), update in zip(parameters.items(), jax.tree.leaves(updates), strict=True):
        if name in by_muon:
            expected = pytorchs_muon(parameter[0, 0], [gradients[name][0, 0]])
        else:
            expected = parameter - 0.2 * 1.5 * (gradients[name] + 0.1 * parameter)
        np.testing.assert_allclose(parameter + update, expected.reshape(update.shape), rtol=1e-7, atol=1e-9)


def pytorchs_muon(kernel, gradients):
    """A kernel of [in, out] after ``torch.optim.Muon`` at a constant learning rate, in float64 throughout: by itself it
    takes gradients in bfloat16."""
    parameter = torch.nn.Parameter(torch.tensor(kernel.T))
    muon = torch.optim.Muon([parameter], 0.3, weight_decay=0.5)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient.T)
        with patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor):
            muon.step()
    return parameter.detach().numpy().T


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_goes_on_as_pytorchs(float64, shape):
    """The learning rate is all but constant over so long a run, and so is the gradient: what the first steps have of
    gradients before them differs, as Optax takes the average's start at zero into account and PyTorch does not."""
    random = np.random.default_rng(1)
    kernel, gradient = random.normal(size=shape), random.normal(0, 50, shape)
    optimizer, kernels = make_optimizer(MUON, 10**9), [jnp.asarray(kernel)[None, None]]
    state = optimizer.init(kernels)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)([jnp.asarray(gradient)[None, None]], state, kernels)
        kernels = [kernel + update for kernel, update in zip(kernels, jax.tree.leaves(updates), strict=True)]
    np.testing.assert_allclose(kernels[0][0, 0], pytorchs_muon(kernel, [gradient] * 3), rtol=1e-7, atol=1e-9)


def test_muon_follows_the_average_of_gradients_and_the_schedule(float64):
    """A square diagonal gradient stays diagonal: what becomes of its values is that of numbers."""
    optimizer = make_optimizer(MUON, 4)
    kernels, gradients = [jnp.zeros((1, 1, 2, 2))], np.random.default_rng(2).normal(size=(3, 2))
    state, average = optimizer.init(kernels), np.zeros(2)
    for number, gradient in enumerate(gradients):
        updates, state = jax.jit(optimizer.update)([jnp.diag(gradient)[None, None]], state, kernels)
        average = 0.95 * average + 0.05 * gradient
        values = 0.95 * average / (1 - 0.95 ** (number + 2)) + 0.05 * gradient / (1 - 0.95 ** (number + 1))
        values /= np.linalg.norm(values)
        for _ in range(5):
            values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
        learning_rate = 0.15 * (1 + np.cos(np.pi * number / 4))
        np.testing.assert_allclose(
            jax.tree.leaves(updates)[0][0, 0], -learning_rate * np.diag(values), rtol=1e-6, atol=1e-12
        )


def test_a_frozen_net_has_nothing_for_muon():
    classifier = [jnp.ones((8, 3)), jnp.ones(3)]
    optimizer = make_optimizer(MUON, 10)
    updates, _ = optimizer.update(classifier, optimizer.init(classifier), classifier)
    np.testing.assert_allclose(jax.tree.leaves(updates)[0], -0.2 * 1.5 * 1.1, rtol=1e-6)


def test_a_recipe_says_what_muon_does_and_refuses_it_where_there_is_none():
    assert "Muon for 1x1 kernels with learning rate 0.3, weight decay 0.5" in describe(MUON, flip=True)
    assert "Muon" not in describe(Config(), flip=True)
    with pytest.raises(
        OptionError, match="--muon_weight_decay is for --optimizer muon: give that too, or leave it out"
    ):
        Config(muon_weight_decay=0.5)
