"""Class scores, loss and accuracy over a whole test set."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, UInt8

from flax_shufflenet.functional import Functional
from flax_shufflenet.images.normalisation import normalise
from flax_shufflenet.training import devices

Predict = Callable[[list[Array], list[Array]], Float[np.ndarray, "test classes"]]


class Evaluation(NamedTuple):
    """Mean loss, and the share from 0 to 1 of images classified correctly."""

    loss: float
    accuracy: float


Evaluate = Callable[[list[Array], list[Array]], Evaluation]


def make_predict(
    network: Functional,
    images: UInt8[Array, "test h w 3"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    bgr: bool = False,
    flip: bool = False,
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> Predict:
    """A function ``(parameters, statistics) -> logits`` of all ``images``; ``network`` is in eval mode.

    The logits are float32, or float64 where the net computes in that. ``flip`` takes the mean of those of each image
    and its mirror image. With a ``mesh``, all arrays are on all of its devices, and each device works on up to
    ``batch_size`` images at a time.
    """
    count = len(images)
    parts = 1 if mesh is None else mesh.size
    batch_size = min(batch_size, -(-count // parts)) * parts

    def logits_of_batch(
        parameters: list[Array],
        statistics: list[Array],
        images: UInt8[Array, "test h w 3"],
        start: int | Int32[Array, ""],
    ) -> Float[Array, "batch classes"]:
        # The last batch reaches beyond the end, and repeats the last image there.
        indices = devices.shard(jnp.minimum(start + jnp.arange(batch_size), count - 1))
        batch = normalise(images[indices], mean, std, bgr=bgr)
        views = (batch, batch[:, :, ::-1]) if flip else (batch,)
        scores = [network.apply(parameters, statistics, view)[0] for view in views]
        wide = [logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) for logits in scores]
        return sum(wide[1:], wide[0]) / len(wide)

    run = devices.jit(logits_of_batch, mesh)

    def predict(parameters: list[Array], statistics: list[Array]) -> Float[np.ndarray, "test classes"]:
        batches = [run(parameters, statistics, images, start) for start in range(0, count, batch_size)]
        return np.concatenate(jax.device_get(batches))[:count]

    return predict


def log_probabilities(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """The logarithm of the softmax, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def evaluate_logits(logits: Float[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> Evaluation:
    """The mean cross-entropy and the accuracy of class scores."""
    losses = -log_probabilities(logits)[np.arange(len(labels)), labels]
    return Evaluation(float(losses.mean()), float(np.mean(logits.argmax(axis=1) == labels)))


def make_evaluate(
    network: Functional,
    images: UInt8[Array, "test h w 3"],
    labels: Int32[np.ndarray, " test"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    bgr: bool = False,
    flip: bool = False,
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> Evaluate:
    """A function ``(parameters, statistics) -> Evaluation``; the rest as for ``make_predict``."""
    predict = make_predict(network, images, mean=mean, std=std, bgr=bgr, flip=flip, batch_size=batch_size, mesh=mesh)
    return lambda parameters, statistics: evaluate_logits(predict(parameters, statistics), labels)
