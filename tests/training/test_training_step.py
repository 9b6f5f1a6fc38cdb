"""The train step: its order of images, its update, its repeatability."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flax_shufflenet import Architecture
from flax_shufflenet.functional import split
from flax_shufflenet.images.normalisation import normalise
from flax_shufflenet.training.augmentation import augment
from flax_shufflenet.training.averaging import Averages
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.optimizer import make_optimizer
from flax_shufflenet.training.random_streams import Stream, epoch_order, step_key
from flax_shufflenet.training.step import (
    cross_entropy,
    final_arrays,
    initial_state,
    make_train_step,
)
from tests.net_tools import new_net

TINY = Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)
AVERAGED = Config(batch_size=8, ema=0.3)


class Runner:
    """Short runs on the small dataset. Steps are compiled once for each configuration: it takes seconds."""

    def __init__(self, dataset):
        self.images, self.labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
        self.dataset = dataset
        self.train_step = functools.cache(self._train_step)

    def _train_step(self, config, total_steps):
        network, _, _ = split(self.model(config))
        return make_train_step(network, make_optimizer(config, total_steps), config, self.dataset)

    def model(self, config):
        return new_net(TINY, dtype=config.dtype, seed=config.seed)

    def start(self, config, total_steps):
        _, parameters, statistics = split(self.model(config))
        optimizer = make_optimizer(config, total_steps)
        return initial_state(parameters, statistics, optimizer, averaged=config.ema > 0)

    def go_on(self, config, state, total_steps, until):
        """From ``state`` until ``until`` steps are done: the new state, and each step's loss."""
        losses = []
        for number in range(int(state.step), until):
            order = epoch_order(config.seed, number // (21 // config.batch_size), 21)
            state, metrics = self.train_step(config, total_steps)(state, self.images, self.labels, order)
            losses.append(float(metrics.loss))
        return state, losses


@pytest.fixture(scope="module")
def runner(small_dataset):
    return Runner(small_dataset)


def assert_same_bits(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_epoch_goes_through_every_image_once_and_epochs_differ():
    orders = [np.asarray(epoch_order(5, epoch, 1000)) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (orders[0] != orders[1]).any()
    assert (orders[1] != orders[2]).any()
    assert (np.asarray(epoch_order(6, 0, 1000)) != orders[0]).any()
    np.testing.assert_array_equal(epoch_order(5, 0, 1000), orders[0])


def test_steps_follow_pytorchs_sgd_written_by_hand(runner):
    """Coupled decay on every parameter, Nesterov momentum, a cosine per step, over two epochs of two batches."""
    config = Config(batch_size=8, learning_rate=0.2, momentum=0.8, weight_decay=0.01, seed=4)
    steps, dataset = 4, runner.dataset
    network, _, _ = split(runner.model(config))
    state = runner.start(config, steps)
    parameters = [np.asarray(leaf, np.float64) for leaf in state.parameters]
    velocity = [np.zeros_like(leaf) for leaf in parameters]
    statistics = [jnp.array(leaf) for leaf in state.statistics]

    @jax.jit
    def loss_and_gradients(parameters, statistics, images, labels):
        def loss_of(parameters):
            logits, new_statistics = network.apply(parameters, statistics, images)
            return cross_entropy(logits, labels).mean(), new_statistics

        return jax.value_and_grad(loss_of, has_aux=True)(parameters)

    @jax.jit
    def prepared(key, images):
        return normalise(augment(key, images, flip=True, padding=4, padding_mode="constant"), dataset.mean, dataset.std)

    for number in range(steps):
        indices = np.asarray(epoch_order(4, number // 2, 21))[number % 2 * 8 :][:8]
        images = prepared(step_key(4, Stream.AUGMENTATION, number), runner.images[indices])
        arrays = [jnp.asarray(leaf, jnp.float32) for leaf in parameters]
        (loss, statistics), gradients = loss_and_gradients(arrays, statistics, images, runner.labels[indices])
        learning_rate = 0.2 * (1 + np.cos(np.pi * number / steps)) / 2
        for index, gradient in enumerate(gradients):
            decayed = np.asarray(gradient, np.float64) + 0.01 * parameters[index]
            velocity[index] = 0.8 * velocity[index] + decayed
            parameters[index] = parameters[index] - learning_rate * (decayed + 0.8 * velocity[index])

        state, (our_loss,) = runner.go_on(config, state, steps, number + 1)
        np.testing.assert_allclose(our_loss, loss, rtol=1e-5)
        for ours, by_hand in zip(state.parameters, parameters, strict=True):
            np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-5)
    for ours, by_hand in zip(state.statistics, statistics, strict=True):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-5)
    assert int(state.step) == steps


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_loss_is_pytorchs(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 5, (16, 7)).astype(np.float32), rng.integers(0, 7, 16)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")(
        torch.from_numpy(logits), torch.from_numpy(labels)
    )
    losses = cross_entropy(jnp.asarray(logits), jnp.asarray(labels, jnp.int32), smoothing=smoothing)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)


def test_averages_follow_the_steps_and_do_not_touch_them(runner):
    plain = Config(batch_size=8)
    state, plain_state = runner.start(AVERAGED, 5), runner.start(plain, 5)
    assert plain_state.averages == ()
    expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.averages)]
    for step in range(4):
        state, _ = runner.go_on(AVERAGED, state, 5, step + 1)
        plain_state, _ = runner.go_on(plain, plain_state, 5, step + 1)
        decay = min(0.3, (1 + step) / (10 + step))
        values = jax.tree.leaves((state.parameters, state.statistics))
        for index, value in enumerate(values):
            if value.dtype == jnp.int32:  # a count of batches
                expected[index] = np.asarray(value)
            else:
                expected[index] = decay * expected[index] + (1 - decay) * np.asarray(value, np.float64)
    assert isinstance(state.averages, Averages)
    for average, by_hand in zip(jax.tree.leaves(state.averages), expected, strict=True):
        np.testing.assert_allclose(average, by_hand, rtol=1e-4, atol=1e-5)
    for ours, raw in zip(jax.tree.leaves(state._replace(averages=())), jax.tree.leaves(plain_state), strict=True):
        np.testing.assert_allclose(ours, raw, rtol=1e-4, atol=1e-5)
    assert final_arrays(plain_state) == (plain_state.parameters, plain_state.statistics)
    assert final_arrays(state) == (state.averages.parameters, state.averages.statistics)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(runner):
    config, other = Config(batch_size=8), Config(batch_size=8, seed=1)
    first, losses = runner.go_on(config, runner.start(config, 5), 5, 5)
    again, same_losses = runner.go_on(config, runner.start(config, 5), 5, 5)
    assert losses == same_losses
    assert_same_bits(first, again)
    assert runner.go_on(other, runner.start(other, 5), 5, 5)[1] != losses


def test_a_run_can_be_taken_up_from_its_state(runner):
    """All that says where a run stands is in the state, in the middle of an epoch too."""
    config = Config(batch_size=8)
    whole, _ = runner.go_on(config, runner.start(config, 5), 5, 5)
    half, _ = runner.go_on(config, runner.start(config, 5), 5, 3)
    kept = jax.tree.map(np.asarray, half)
    rest, _ = runner.go_on(config, jax.tree.map(jnp.array, kept), 5, 5)
    assert_same_bits(whole, rest)


@pytest.mark.parametrize("ema", [0.0, AVERAGED.ema])
def test_no_two_arrays_of_the_state_share_a_buffer(runner, ema):
    config = Config(batch_size=8, ema=ema)
    state = runner.start(config, 5)
    for number in range(2):
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(pointers)) == len(pointers)
        state, _ = runner.go_on(config, state, 5, number + 1)


def test_a_step_donates_the_state_but_not_the_arrays_it_was_made_from(runner):
    config = Config(batch_size=8)
    _, parameters, statistics = split(runner.model(config))
    state = initial_state(parameters, statistics, make_optimizer(config, 5))
    runner.go_on(config, state, 5, 1)
    assert state.parameters[0].is_deleted()
    assert not any(leaf.is_deleted() for leaf in parameters + statistics)


def test_the_loss_of_bfloat16_is_in_float32():
    loss = cross_entropy(jnp.array([[30.0, -30.0, 2.5]], jnp.bfloat16), jnp.array([2], jnp.int32))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [27.5], rtol=1e-6)


def test_bfloat16_learns_with_parameters_and_statistics_in_float32(small_dataset):
    """Classes that differ in brightness: two dozen steps are enough."""
    labels = small_dataset.train_labels
    noise = small_dataset.train_images // 8
    bright = dataclasses.replace(
        small_dataset, train_images=(noise + 100 * labels[:, None, None, None]).astype(np.uint8)
    )
    runner = Runner(bright)
    config = Config(batch_size=16, dtype="bfloat16", learning_rate=0.5)
    state, losses = runner.go_on(config, runner.start(config, 24), 24, 24)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-4:]) < losses[0] / 10
