"""One step of training, as a pure function of the state, the data and the seed.

So a run is exactly repeatable, and all that says where it stands is ``TrainState``.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.functional import Functional
from flax_shufflenet.training import devices
from flax_shufflenet.training.averaging import Averages, update_averages
from flax_shufflenet.training.batches import Batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.freezing import Trained
from flax_shufflenet.training.random_streams import Stream, step_key


class TrainState(NamedTuple):
    """Everything that a step changes; ``step`` counts the steps done. ``averages`` is empty without ``--ema``."""

    parameters: list[Array]
    statistics: list[Array]
    optimizer: optax.OptState
    step: Int32[Array, ""]
    averages: Averages | tuple[()] = ()


class StepMetrics(NamedTuple):
    """Of one batch, before the update: the mean loss, and the images classified correctly."""

    loss: Float[Array, ""]
    correct: Int32[Array, ""]


def initial_state(
    parameters: list[Array],
    statistics: list[Array],
    optimizer: optax.GradientTransformation,
    *,
    averaged: bool = False,
    trained: Trained | None = None,
) -> TrainState:
    """The state before the first step. It owns its arrays: a step may then donate them.

    ``trained`` are the parameters that the optimiser knows; None for all.
    """
    averages = Averages(parameters, statistics) if averaged else ()
    # One program; otherwise each shape has its own.
    optimizer_state = jax.jit(optimizer.init)(trained.of(parameters) if trained else parameters)
    state = TrainState(parameters, statistics, optimizer_state, jnp.zeros((), jnp.int32), averages)
    return jax.device_put(jax.tree.map(np.array, state))


def cross_entropy(
    logits: Float[Array, "n classes"], labels: Int32[Array, " n"], *, smoothing: float = 0.0
) -> Float[Array, " n"]:
    """Each image's loss, in float32; in float64 where the net computes in that.

    ``smoothing`` is the share of the label that is spread evenly over all classes, the right one included, as
    ``label_smoothing`` of ``torch.nn.CrossEntropyLoss``.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * jax.nn.log_softmax(logits).mean(axis=-1)


def final_arrays(state: TrainState) -> tuple[list[Array], list[Array]]:
    """Parameters and batch statistics of the net to test and to save: the averaged ones where there are any."""
    return state.averages or (state.parameters, state.statistics)


def dropout_rngs(seed: int, step: int | Int32[Array, ""]) -> nnx.Rngs:
    """What the net of step ``step``, counted from 0, draws the features from that it drops."""
    return nnx.Rngs(dropout=step_key(seed, Stream.DROPOUT, step))


Update = Callable[[TrainState, Float32[Array, "n h w 3"], Int32[Array, " n"]], tuple[TrainState, StepMetrics]]


def make_update(
    network: Functional, optimizer: optax.GradientTransformation, config: Config, trained: Trained | None = None
) -> Update:
    """A function ``(state, images, labels) -> (state, metrics)``: what a step does with a batch.

    ``network`` is in train mode. ``trained`` are the parameters that have gradients and are updated, None for all;
    what is not trained comes out with the bits that went in, averages included.
    """

    def update(
        state: TrainState, images: Float32[Array, "n h w 3"], labels: Int32[Array, " n"]
    ) -> tuple[TrainState, StepMetrics]:
        def whole(some: list[Array]) -> list[Array]:
            return trained.put(state.parameters, some) if trained else some

        def loss_of(some: list[Array]) -> tuple[Array, tuple[Array, list[Array]]]:
            rngs = dropout_rngs(config.seed, state.step)
            logits, statistics = network.apply(whole(some), state.statistics, images, rngs=rngs)
            loss = cross_entropy(logits, labels, smoothing=config.label_smoothing).mean()
            return loss, (logits, statistics)

        before = trained.of(state.parameters) if trained else state.parameters
        (loss, (logits, statistics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(before)
        loss, gradients = devices.average((loss, gradients))
        if config.batch_statistics == "per_device":
            statistics = _averaged(statistics)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, before)
        parameters = whole(cast("list[Array]", optax.apply_updates(before, updates)))
        correct = devices.total(jnp.sum(jnp.argmax(logits, -1) == labels, dtype=jnp.int32))
        averages = state.averages
        if isinstance(averages, Averages):
            new = update_averages(averages, parameters, statistics, decay=config.ema, step=state.step)
            # The average of what stays as it is would be rounded.
            averages = Averages(trained.put(parameters, trained.of(new.parameters)), statistics) if trained else new
        new_state = TrainState(parameters, statistics, optimizer_state, state.step + 1, averages)
        return new_state, StepMetrics(loss, correct)

    return update


def _averaged(statistics: list[Array]) -> list[Array]:
    """Over all devices; counts of batches are the same on all."""
    return [devices.average(each) if jnp.issubdtype(each.dtype, jnp.floating) else each for each in statistics]


def make_train_step(
    network: Functional,
    optimizer: optax.GradientTransformation,
    config: Config,
    dataset: AnyDataset,
    *,
    mesh: Mesh | None = None,
    trained: Trained | None = None,
) -> jax.stages.Wrapped:
    """The jitted step ``(state, images, labels, order) -> (state, metrics)``; that of a streamed dataset has no order.

    ``images`` and ``labels`` are the whole training set, ``order`` is the current epoch's ``epoch_order``. Of a
    streamed dataset they are one batch. The state that goes in is donated: its arrays may not be used afterwards.
    ``network`` and ``trained`` are those of ``make_update``. With a ``mesh``, all that goes in and comes out is on all
    of its devices, but for a streamed batch, which is divided among them; each works on its part of the batch.
    """
    update = make_update(network, optimizer, config, trained)
    in_memory = isinstance(dataset, Dataset)
    batches = Batches.of(config, dataset)
    batch_of: Callable[..., tuple[Array, Array]] = batches.pick if in_memory else batches.prepare
    arrays = (devices.REPLICATED,) * 3 if in_memory else (devices.DIVIDED,) * 2

    def step(state: TrainState, *arrays: Array) -> tuple[TrainState, StepMetrics]:
        return update(state, *batch_of(state.step, *arrays))

    return devices.jit(step, mesh, inputs=(devices.REPLICATED, *arrays), donate_argnums=0)
