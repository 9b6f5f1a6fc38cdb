"""Loss and accuracy over a whole test set."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, UInt8

from flax_shufflenet.functional import Functional
from flax_shufflenet.training.augmentation import normalise
from flax_shufflenet.training.step import cross_entropy


class Evaluation(NamedTuple):
    """Mean loss, and the share from 0 to 1 of images classified correctly."""

    loss: float
    accuracy: float


Evaluate = Callable[[list[Array], list[Array]], Evaluation]


def make_evaluate(
    network: Functional,
    images: UInt8[Array, "test h w 3"],
    labels: Int32[Array, " test"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int = 256,
) -> Evaluate:
    """A function ``(parameters, statistics) -> Evaluation`` over all ``images``; ``network`` is in eval mode."""
    count = len(labels)
    batch_size = min(batch_size, count)

    @jax.jit
    def sums(
        parameters: list[Array],
        statistics: list[Array],
        images: UInt8[Array, "test h w 3"],
        labels: Int32[Array, " test"],
        start: int | Int32[Array, ""],
    ) -> tuple[Float32[Array, ""], Int32[Array, ""]]:
        # The last batch reaches beyond the end: it repeats the last image there, and counts it with weight 0.
        indices = start + jnp.arange(batch_size)
        counted = indices < count
        indices = jnp.minimum(indices, count - 1)
        logits, _ = network.apply(parameters, statistics, normalise(images[indices], mean, std))
        losses = cross_entropy(logits, labels[indices])
        correct = counted & (jnp.argmax(logits, -1) == labels[indices])
        return jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(correct, dtype=jnp.int32)

    def evaluate(parameters: list[Array], statistics: list[Array]) -> Evaluation:
        batches = [sums(parameters, statistics, images, labels, start) for start in range(0, count, batch_size)]
        losses, corrects = zip(*jax.device_get(batches), strict=True)
        return Evaluation(float(sum(map(float, losses))) / count, int(sum(map(int, corrects))) / count)

    return evaluate
