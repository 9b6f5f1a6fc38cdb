"""One step of training, as a pure function of the state, the data and the seed.

Which images a step sees, and how they are augmented, follows from the seed and the step's number alone. So a run
is exactly repeatable, and all that says where it stands is ``TrainState``.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Int32, Key, UInt8

from flax_shufflenet.functional import Functional
from flax_shufflenet.training.augmentation import augment, normalise
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.data import Dataset

# Independent streams of random numbers, all drawn from the one seed.
_ORDER, _AUGMENTATION = 0, 1


class TrainState(NamedTuple):
    """Everything that a step changes; ``step`` counts the steps done."""

    parameters: list[Array]
    statistics: list[Array]
    optimizer: optax.OptState
    step: Int32[Array, ""]


class StepMetrics(NamedTuple):
    """Of one batch, before the update: the mean loss, and the images classified correctly."""

    loss: Float[Array, ""]
    correct: Int32[Array, ""]


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """The learning rate of each step: a cosine from ``config.learning_rate`` to 0 over the run."""
    return optax.cosine_decay_schedule(config.learning_rate, total_steps)


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """``torch.optim.SGD(nesterov=True)`` on every parameter; the decay goes into the momentum, as there."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(make_schedule(config, total_steps), config.momentum, nesterov=config.momentum > 0),
    )


def initial_state(
    parameters: list[Array], statistics: list[Array], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step. It owns its arrays: a step may then donate them."""
    state = TrainState(parameters, statistics, optimizer.init(parameters), jnp.zeros((), jnp.int32))
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)


def cross_entropy(logits: Float[Array, "n classes"], labels: Int32[Array, " n"]) -> Float[Array, " n"]:
    """Each image's loss, in float32; in float64 where the net computes in that."""
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(wide), labels)


def _key(seed: int, stream: int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.key(seed), stream)


@partial(jax.jit, static_argnames=("seed", "count"))
def epoch_order(seed: int, epoch: int | Int32[Array, ""], count: int) -> Int32[Array, " count"]:
    """The order in which epoch ``epoch``, counted from 0, goes through ``count`` images."""
    return jax.random.permutation(jax.random.fold_in(_key(seed, _ORDER), epoch), jnp.arange(count, dtype=jnp.int32))


def make_batch(
    step: int | Int32[Array, ""],
    images: UInt8[Array, "train h w 3"],
    labels: Int32[Array, " train"],
    order: Int32[Array, " train"],
    config: Config,
    dataset: Dataset,
) -> tuple[Float32[Array, "n h w 3"], Int32[Array, " n"]]:
    """The augmented and normalised images of step ``step``, counted from 0, and their labels.

    ``images`` and ``labels`` are the whole training set, ``order`` is the ``epoch_order`` of the step's epoch.
    """
    start = step % (len(dataset.train_labels) // config.batch_size) * config.batch_size
    indices = jax.lax.dynamic_slice(order, (start,), (config.batch_size,))
    key = jax.random.fold_in(_key(config.seed, _AUGMENTATION), step)
    batch = augment(key, images[indices], flip=dataset.flip)
    return normalise(batch, dataset.mean, dataset.std), labels[indices]


def make_train_step(
    network: Functional, optimizer: optax.GradientTransformation, config: Config, dataset: Dataset
) -> jax.stages.Wrapped:
    """The jitted step ``(state, images, labels, order) -> (state, metrics)``.

    ``images`` and ``labels`` are the whole training set, ``order`` is the current epoch's ``epoch_order``. The
    state that goes in is donated: its arrays may not be used afterwards. ``network`` is in train mode.
    """

    def step(
        state: TrainState,
        images: UInt8[Array, "train h w 3"],
        labels: Int32[Array, " train"],
        order: Int32[Array, " train"],
    ) -> tuple[TrainState, StepMetrics]:
        batch, batch_labels = make_batch(state.step, images, labels, order, config, dataset)

        def loss_of(parameters: list[Array]) -> tuple[Array, tuple[Array, list[Array]]]:
            logits, statistics = network.apply(parameters, state.statistics, batch)
            return cross_entropy(logits, batch_labels).mean(), (logits, statistics)

        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = cast("list[Array]", optax.apply_updates(state.parameters, updates))
        correct = jnp.sum(jnp.argmax(logits, -1) == batch_labels, dtype=jnp.int32)
        new_state = TrainState(parameters, statistics, optimizer_state, state.step + 1)
        return new_state, StepMetrics(loss, correct)

    return jax.jit(step, donate_argnums=0)
