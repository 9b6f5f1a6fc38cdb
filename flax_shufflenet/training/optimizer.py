"""What a step does with the gradients: SGD, or Muon where that can be, and the learning rate of each step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import contrib

from flax_shufflenet.training.config import Config


def make_schedule(config: Config, total_steps: int, peak: float | None = None) -> optax.Schedule:
    """The learning rate of each step: a cosine from ``peak``, by default ``config.learning_rate``, to 0 over the run.

    A warm-up takes the first steps, and the cosine the rest. Its first step already learns: step i of w has
    (i + 1) / (w + 1) of the learning rate.
    """
    peak = config.learning_rate if peak is None else peak
    first_steps = warmup_steps(config, total_steps)
    cosine = optax.cosine_decay_schedule(peak, total_steps - first_steps)
    if not first_steps:
        return cosine
    warmup = optax.linear_schedule(peak / (first_steps + 1), peak, first_steps)
    return optax.join_schedules([warmup, cosine], [first_steps])


def warmup_steps(config: Config, total_steps: int) -> int:
    """The steps in which the learning rate rises."""
    return round(total_steps * config.warmup_epochs / config.epochs)


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """``torch.optim.SGD(nesterov=True)`` on every parameter; the decay goes into the momentum, as there.

    With ``optimizer="muon"``, the kernels of 1x1 convolutions go by Muon instead (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon), as in ``torch.optim.Muon``: a step is the nearest semi-orthogonal matrix
    to the averaged gradient, times the learning rate, and the root of outputs over inputs where those are more. Its
    decay is apart from the gradient.
    """
    sgd = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_are_kernels if config.decayed == "kernels" else None),
        optax.sgd(make_schedule(config, total_steps), config.momentum, nesterov=config.momentum > 0),
    )
    if config.optimizer == "sgd":
        return sgd
    muon = contrib.muon(
        make_schedule(config, total_steps, config.muon_learning_rate),
        weight_decay=config.muon_weight_decay,
        muon_weight_dimension_numbers=_as_matrices,
    )
    return optax.partition({"sgd": sgd, "muon": _in_stacks(muon)}, _optimizers)


# Those of a net; a node in place of each that the other optimiser has.
_Own = list[Array | optax.MaskedNode]


def _are_kernels(parameters: _Own) -> list[bool | optax.MaskedNode]:
    # Biases and batch normalisation have one axis, which He et al. (https://arxiv.org/abs/1812.01187) do not decay.
    return jax.tree.map(lambda parameter: parameter.ndim > 1, parameters)


def _optimizers(parameters: list[Array]) -> list[str]:
    """Depthwise kernels are no matrices, nor is a stem's of 3x3; the classifier's is not what Muon is for, by its
    authors."""
    return ["muon" if _is_pointwise(parameter) else "sgd" for parameter in parameters]


def _is_pointwise(parameter: Array) -> bool:
    return parameter.ndim == 4 and parameter.shape[:2] == (1, 1)


def _in_stacks(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser of stacks of matrices, made one of kernels of 1x1 convolutions: those of one shape are a stack.

    A net of size 0.5 has 36 in four shapes, and Muon fifteen products for each.
    """

    def init(kernels: _Own) -> optax.OptState:
        return optimizer.init(_stacked(kernels))

    def update(gradients: _Own, state: optax.OptState, kernels: _Own) -> tuple[_Own, optax.OptState]:
        updates, state = optimizer.update(_stacked(gradients), state, _stacked(kernels))
        return _unstacked(updates, kernels), state

    return optax.GradientTransformation(init, update)  # pyrefly: ignore[bad-argument-type], of lists alone


def _stacked(kernels: _Own) -> dict[str, Float[Array, "kernels cin cout"]]:
    stacks: dict[str, list[Array]] = {}
    for kernel in jax.tree.leaves(kernels):
        stacks.setdefault(_shape(kernel), []).append(kernel[0, 0])
    return {shape: jnp.stack(matrices) for shape, matrices in stacks.items()}


def _unstacked(stacks: Any, kernels: _Own) -> _Own:
    """As ``kernels`` lie in their list."""
    matrices = {shape: iter(stack) for shape, stack in stacks.items()}
    return jax.tree.map(lambda kernel: next(matrices[_shape(kernel)])[None, None], kernels)


def _shape(kernel: Array) -> str:
    return "x".join(map(str, kernel.shape[2:]))


def _as_matrices(stacks: optax.Params) -> optax.Params:
    return jax.tree.map(lambda _: contrib.MuonDimensionNumbers((1,), (2,)), stacks)
