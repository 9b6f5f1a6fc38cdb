"""The train step: its order of images, its update, its repeatability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flax_shufflenet import Architecture, ShuffleNetV2
from flax_shufflenet.functional import split
from flax_shufflenet.training.augmentation import augment, normalise
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.step import (
    _AUGMENTATION,
    _key,
    cross_entropy,
    epoch_order,
    initial_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)

TINY = Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)


def setup(config, dataset, total_steps):
    model = ShuffleNetV2(TINY, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(0))
    network, parameters, statistics = split(model)
    optimizer = make_optimizer(config, total_steps)
    state = initial_state(parameters, statistics, optimizer)
    return network, state, make_train_step(network, optimizer, config, dataset)


def run(config, dataset, steps):
    """The state and the losses after some steps of a run of ``steps``."""
    _, state, train_step = setup(config, dataset, steps)
    count = len(dataset.train_labels)
    per_epoch = count // config.batch_size
    losses = []
    for number in range(steps):
        order = epoch_order(config.seed, number // per_epoch, count)
        state, metrics = train_step(state, dataset.train_images, dataset.train_labels, order)
        losses.append(float(metrics.loss))
    return state, losses


def test_an_epoch_goes_through_every_image_once_and_epochs_differ():
    orders = [np.asarray(epoch_order(5, epoch, 1000)) for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (orders[0] != orders[1]).any()
    assert (orders[1] != orders[2]).any()
    assert (np.asarray(epoch_order(6, 0, 1000)) != orders[0]).any()
    np.testing.assert_array_equal(epoch_order(5, 0, 1000), orders[0])


def test_steps_follow_pytorchs_sgd_written_by_hand(small_dataset):
    """Coupled decay on every parameter, Nesterov momentum, a cosine per step, over two epochs."""
    config = Config(batch_size=8, learning_rate=0.2, momentum=0.8, weight_decay=0.01, seed=4)
    steps = 4  # 21 images are two batches of 8 per epoch
    network, state, train_step = setup(config, small_dataset, steps)
    parameters = [np.asarray(leaf, np.float64) for leaf in state.parameters]
    velocity = [np.zeros_like(leaf) for leaf in parameters]
    statistics = [jnp.array(leaf) for leaf in state.statistics]

    for number in range(steps):
        order = np.asarray(epoch_order(4, number // 2, 21))
        indices = order[number % 2 * 8 :][:8]
        key = jax.random.fold_in(_key(4, _AUGMENTATION), number)
        batch = normalise(
            augment(key, small_dataset.train_images[indices], flip=True), small_dataset.mean, small_dataset.std
        )

        def loss_of(leaves, statistics=statistics, batch=batch, indices=indices):
            logits, new_statistics = network.apply(leaves, statistics, batch)
            return cross_entropy(logits, small_dataset.train_labels[indices]).mean(), new_statistics

        arrays = [jnp.asarray(leaf, jnp.float32) for leaf in parameters]
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(arrays)
        learning_rate = 0.2 * (1 + np.cos(np.pi * number / steps)) / 2
        for index, gradient in enumerate(gradients):
            decayed = np.asarray(gradient, np.float64) + 0.01 * parameters[index]
            velocity[index] = 0.8 * velocity[index] + decayed
            parameters[index] = parameters[index] - learning_rate * (decayed + 0.8 * velocity[index])

        state, metrics = train_step(
            state, small_dataset.train_images, small_dataset.train_labels, jnp.asarray(order, jnp.int32)
        )
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
        for ours, by_hand in zip(state.parameters, parameters, strict=True):
            np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-5)
    for ours, by_hand in zip(state.statistics, statistics, strict=True):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-3, atol=1e-5)
    assert int(state.step) == steps


def test_the_schedule_is_a_cosine_from_the_learning_rate_to_zero():
    schedule = make_schedule(Config(learning_rate=0.3), 100)
    rates = [float(schedule(step)) for step in range(101)]
    np.testing.assert_allclose(rates, [0.15 * (1 + np.cos(np.pi * step / 100)) for step in range(101)], atol=1e-7)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small_dataset):
    first, losses = run(Config(batch_size=8), small_dataset, 5)
    again, same_losses = run(Config(batch_size=8), small_dataset, 5)
    assert losses == same_losses
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert run(Config(batch_size=8, seed=1), small_dataset, 5)[1] != losses


def test_a_run_can_be_taken_up_from_its_state(small_dataset):
    """All that says where a run stands is in the state: a fresh step function goes on from it bit for bit."""
    config = Config(batch_size=8)
    whole, _ = run(config, small_dataset, 5)
    _, state, train_step = setup(config, small_dataset, 5)
    for number in range(5):
        if number == 3:
            state = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), state)
            train_step = setup(config, small_dataset, 5)[2]
        order = epoch_order(0, number // 2, 21)
        state, _ = train_step(state, small_dataset.train_images, small_dataset.train_labels, order)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_two_arrays_of_the_state_share_a_buffer(small_dataset):
    _, state, train_step = setup(Config(batch_size=8), small_dataset, 2)
    order = epoch_order(0, 0, 21)
    for _ in range(2):
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(pointers)) == len(pointers)
        state, _ = train_step(state, small_dataset.train_images, small_dataset.train_labels, order)


def test_the_model_that_the_state_came_from_survives_donation(small_dataset):
    model = ShuffleNetV2(TINY, rngs=nnx.Rngs(0))
    network, parameters, statistics = split(model)
    config = Config(batch_size=8)
    optimizer = make_optimizer(config, 2)
    state = initial_state(parameters, statistics, optimizer)
    train_step = make_train_step(network, optimizer, config, small_dataset)
    train_step(state, small_dataset.train_images, small_dataset.train_labels, epoch_order(0, 0, 21))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in parameters)
    assert state.parameters[0].is_deleted()


def test_bfloat16_keeps_parameters_statistics_and_loss_in_float32(small_dataset):
    state, losses = run(Config(batch_size=8, dtype="bfloat16"), small_dataset, 3)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))
    assert np.isfinite(losses).all()
    logits = jnp.array([[30.0, -30.0, 2.5]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([2], jnp.int32))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [27.5], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_zero_is_plain_sgd(small_dataset, momentum):
    state, losses = run(Config(batch_size=8, momentum=momentum), small_dataset, 2)
    assert np.isfinite(losses).all()
    assert int(state.step) == 2
