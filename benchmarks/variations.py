"""Parts of train.py's training, each exchanged for another that is worth a try; ``benchmarks.vary`` trains with one.

On one device, and on images that fit its memory. A part is exchanged for the rest of the process.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from flax_shufflenet import model
from flax_shufflenet.functional import Functional
from flax_shufflenet.training import program, step
from flax_shufflenet.training.averaging import Averages
from flax_shufflenet.training.batches import Batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.freezing import Trained
from flax_shufflenet.training.optimizer import make_optimizer
from flax_shufflenet.training.random_streams import Stream

_CIFAR_IMAGES = 50_000


def alternating_flip() -> None:
    """Every image is mirrored in every other epoch, one half of them in the first (Jordan,
    https://arxiv.org/abs/2404.00498)."""
    pick = Batches.pick

    def pick_alternating(
        self: Batches,
        number: Int32[Array, ""],
        images: UInt8[Array, "train ..."],
        labels: Int32[Array, " train"],
        order: Int32[Array, " train"],
    ) -> tuple[Float32[Array, "n h w 3"], Int32[Array, " n"]]:
        batch, batch_labels = pick(self._replace(flip=False), number, images, labels, order)
        epoch = number // (self.train_images // self.batch_size)
        mirrored = alternately_mirrored(self, self.indices(number, order), epoch)[:, None, None, None]
        return jnp.where(mirrored, batch[:, :, ::-1], batch), batch_labels

    patch.object(Batches, "pick", pick_alternating).start()


def alternately_mirrored(run: Batches, indices: Int32[Array, " n"], epoch: int | Int32[Array, ""]) -> Bool[Array, " n"]:
    """Which images are, of those with these indices, in epoch ``epoch``, counted from 0."""
    key = jax.random.fold_in(jax.random.key(run.seed), len(Stream))
    return jax.random.bernoulli(key, shape=(run.train_images,))[indices] ^ (epoch % 2 == 1)


def linear_decay() -> None:
    """The learning rate falls along a line instead of a cosine."""
    patch.object(optax, "cosine_decay_schedule", lambda peak, steps: optax.linear_schedule(peak, 0, steps)).start()


class _Ahead(NamedTuple):
    inner: optax.OptState
    slow: list[Array]
    count: Int32[Array, ""]


def lookahead() -> None:
    """Every 5 steps the net goes half of the way back (Zhang et al., https://arxiv.org/abs/1907.08610)."""

    def wrap(optimizer: optax.GradientTransformation, _total_steps: int) -> optax.GradientTransformation:
        def init(parameters: list[Array]) -> _Ahead:
            return _Ahead(optimizer.init(parameters), [*map(jnp.copy, parameters)], jnp.zeros((), jnp.int32))

        def update(gradients: list[Array], state: _Ahead, parameters: list[Array]) -> tuple[list[Array], _Ahead]:
            updates, inner = optimizer.update(gradients, state.inner, parameters)
            ahead: Any = optax.apply_updates(parameters, updates)
            due = (state.count + 1) % 5 == 0
            new = [jnp.where(due, (back + far) / 2, far) for back, far in zip(state.slow, ahead, strict=True)]
            slow = [jnp.where(due, each, back) for back, each in zip(state.slow, new, strict=True)]
            return jax.tree.map(jnp.subtract, new, parameters), _Ahead(inner, slow, state.count + 1)

        return optax.GradientTransformation(init, update)  # pyrefly: ignore[bad-argument-type], of lists alone

    _wrap_optimizer(wrap)


def frozen_stem() -> None:
    """The stem, whose arrays are the last three, stays as it is in the second half of the run."""

    def wrap(optimizer: optax.GradientTransformation, total_steps: int) -> optax.GradientTransformation:
        learns = optax.scale_by_schedule(optax.piecewise_constant_schedule(1.0, {total_steps // 2: 0.0}))
        return optax.chain(
            optimizer, optax.masked(learns, lambda parameters: [*[False] * (len(parameters) - 3), *[True] * 3])
        )

    _wrap_optimizer(wrap)


def _wrap_optimizer(wrap: Callable[[optax.GradientTransformation, int], optax.GradientTransformation]) -> None:
    def make(config: Config, total_steps: int) -> optax.GradientTransformation:
        return wrap(make_optimizer(config, total_steps), total_steps)

    patch.object(program, "make_optimizer", make).start()


def average_at_the_end() -> None:
    """The net that is saved is the plain average over the last fifth of the steps (Polyak and Juditsky 1992). Give any
    ``--ema``, so that there is an average."""
    make_update = step.make_update

    def make(
        network: Functional, optimizer: optax.GradientTransformation, config: Config, trained: Trained | None = None
    ) -> step.Update:
        first = _total_steps(config) * 4 // 5

        def update(
            averages: Averages,
            parameters: list[Array],
            statistics: list[Array],
            *,
            decay: float,
            step: Int32[Array, ""],
        ) -> Averages:
            del decay
            seen = jnp.maximum(step + 1 - first, 1)

            def mean(average: Array, value: Array) -> Array:
                return average + (value - average) / seen if jnp.issubdtype(value.dtype, jnp.floating) else value

            return jax.tree.map(mean, averages, Averages(parameters, statistics))

        patch.object(step, "update_averages", update).start()
        return make_update(network, optimizer, config, trained)

    patch.object(step, "make_update", make).start()


def small_first() -> None:
    """In the first half of the run images are 24x24, as in progressive resizing (Howard 2018)."""
    make_update, average_pool = step.make_update, model.average_pool
    # The seed's net averages a window of 4x4, which is what 32x32 leaves.
    patch.object(model, "average_pool", lambda x, _window: average_pool(x, 0)).start()

    def make(
        network: Functional, optimizer: optax.GradientTransformation, config: Config, trained: Trained | None = None
    ) -> step.Update:
        update = make_update(network, optimizer, config, trained)

        def update_small(
            state: step.TrainState, images: Float[Array, "n h w 3"], labels: Int32[Array, " n"]
        ) -> tuple[step.TrainState, step.StepMetrics]:
            return update(state, jax.image.resize(images, (len(images), 24, 24, 3), "linear"), labels)

        def chosen(
            state: step.TrainState, images: Float[Array, "n h w 3"], labels: Int32[Array, " n"]
        ) -> tuple[step.TrainState, step.StepMetrics]:
            return jax.lax.cond(state.step < _total_steps(config) // 2, update_small, update, state, images, labels)

        return chosen

    patch.object(step, "make_update", make).start()


def _total_steps(config: Config) -> int:
    return config.epochs * (_CIFAR_IMAGES // config.batch_size)
