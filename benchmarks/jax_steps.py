"""JAX's contenders: this project's net and a stock-Flax one, through one and the same step.

Both are jitted over flat lists of arrays, the train step with its state donated. ``nnx.jit`` walks the module at
every call, tens of milliseconds for these nets; the stock one is not made slow by that.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int32

import flax_shufflenet as fs
from benchmarks.case import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Case, Program
from benchmarks.stock_flax import with_weights_of
from flax_shufflenet.functional import Functional, split
from flax_shufflenet.system.allocator import begin_steps_one_by_one


class TrainState(NamedTuple):
    """What a train step changes."""

    parameters: list[Array]
    statistics: list[Array]
    optimizer: optax.OptState


def make_optimizer() -> optax.GradientTransformation:
    """PyTorch's SGD with nesterov momentum and weight decay."""
    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(LEARNING_RATE, MOMENTUM, nesterov=True))


def make_train_step(network: Functional, optimizer: optax.GradientTransformation) -> jax.stages.Wrapped:
    """``(state, images, labels) -> (state, loss)``: forward, backward, statistics and update; the state is donated."""

    def step(
        state: TrainState, images: Float32[Array, "n h w 3"], labels: Int32[Array, " n"]
    ) -> tuple[TrainState, Float32[Array, ""]]:
        def loss_of(parameters: list[Array]) -> tuple[Array, list[Array]]:
            logits, statistics = network.apply(parameters, state.statistics, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
            return losses.mean(), statistics

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
        with jax.named_scope("update"):
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
            parameters = cast("list[Array]", optax.apply_updates(state.parameters, updates))
        return TrainState(parameters, statistics, optimizer_state), loss

    return jax.jit(step, donate_argnums=0)


def make_training(model: nnx.Module) -> tuple[jax.stages.Wrapped, TrainState]:
    """The train step of a net, and the state that it starts from, which the step may give away."""
    model.train()
    network, parameters, statistics = split(model)
    optimizer = make_optimizer()
    state = TrainState(parameters, statistics, optimizer.init(parameters))
    # Copies of its own: what a step gives away must not be two leaves at once.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
    return make_train_step(network, optimizer), state


def make_forward(network: Functional) -> jax.stages.Wrapped:
    """``(parameters, statistics, images) -> logits``"""
    return jax.jit(lambda parameters, statistics, images: network.apply(parameters, statistics, images)[0])


def project(case: Case, dtype: str = "float32") -> Program:
    return _steps(case, _load(case, dtype))


def stock_flax(case: Case) -> Program:
    return _steps(case, with_weights_of(_load(case)))


def fused(case: Case, dtype: str = "float32") -> Program:
    model = _load(case, dtype)
    images = jnp.asarray(case.images())

    def compile_fused() -> list:
        fast = fs.fuse(model)
        return [lambda: fast(images).block_until_ready()]

    return compile_fused


def _load(case: Case, dtype: str = "float32") -> fs.ShuffleNetV2:
    if case.task == "train":
        begin_steps_one_by_one()  # as train.py does
    return fs.load(case.flax_weights, dtype=jnp.dtype(dtype))


def _steps(case: Case, model: nnx.Module) -> Program:
    images, labels = jnp.asarray(case.images()), jnp.asarray(case.labels())
    if case.task == "infer":
        model.eval()
        network, parameters, statistics = split(model)

        def compile_forward() -> list:
            forward = make_forward(network).lower(parameters, statistics, images).compile()
            return [lambda: forward(parameters, statistics, images).block_until_ready()]

        return compile_forward

    train_step, state = make_training(model)

    def compile_step() -> list:
        compiled = train_step.lower(state, images, labels).compile()
        latest = state

        def step() -> float:
            nonlocal latest
            latest, loss = compiled(latest, images, labels)
            jax.block_until_ready(latest)
            return float(loss)

        return [step]

    return compile_step
