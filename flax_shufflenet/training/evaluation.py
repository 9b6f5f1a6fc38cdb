"""Class scores, loss and accuracy over a whole test set."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32, UInt8

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.datasets.streamed import AnyDataset, StreamedDataset
from flax_shufflenet.functional import Functional
from flax_shufflenet.images.normalisation import normalise
from flax_shufflenet.runs.calibration import log_probabilities
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
    batch_size = _whole_batch_size(batch_size, count, mesh)
    scores_of = _make_scores(network, mean, std, bgr=bgr, flip=flip)

    def logits_of_batch(
        parameters: list[Array],
        statistics: list[Array],
        images: UInt8[Array, "test h w 3"],
        start: int | Int[Array, ""],
    ) -> Float[Array, "batch classes"]:
        # The last batch reaches beyond the end, and repeats the last image there.
        indices = devices.own_part(jnp.minimum(start + jnp.arange(batch_size), count - 1))
        return scores_of(parameters, statistics, images[indices])

    run = devices.jit(logits_of_batch, mesh, outputs=devices.DIVIDED)

    def predict(parameters: list[Array], statistics: list[Array]) -> Float[np.ndarray, "test classes"]:
        batches = [run(parameters, statistics, images, start) for start in range(0, count, batch_size)]
        return np.concatenate(jax.device_get(batches))[:count]

    return predict


def make_streamed_predict(
    network: Functional,
    dataset: StreamedDataset,
    *,
    flip: bool = False,
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> Predict:
    """The same function for test images that are read from disk, each process its part of them.

    Raises, when it is called:
        ImageError: an image cannot be read.
    """
    count = len(dataset.test_labels)
    batch_size = _whole_batch_size(batch_size, count, mesh)
    rows = devices.own_rows(batch_size, mesh)
    scores_of = _make_scores(network, dataset.mean, dataset.std, bgr=dataset.bgr, flip=flip)
    inputs = (devices.REPLICATED, devices.REPLICATED, devices.DIVIDED)
    run = devices.jit(scores_of, mesh, inputs=inputs, outputs=devices.DIVIDED)

    def predict(parameters: list[Array], statistics: list[Array]) -> Float[np.ndarray, "test classes"]:
        starts = range(0, count, batch_size)
        images = dataset.test_images([min(start + row, count - 1) for start in starts for row in rows.tolist()])
        logits = []
        for _ in starts:
            batch = np.stack(list(itertools.islice(images, len(rows))))
            logits.append(jax.device_get(run(parameters, statistics, devices.place_batch(batch, mesh))))
        return np.concatenate(logits)[:count]

    return predict


def make_predict_of(network: Functional, dataset: AnyDataset, *, flip: bool, mesh: Mesh | None = None) -> Predict:
    """The same function for a dataset's test images, wherever they lie."""
    if not isinstance(dataset, Dataset):
        return make_streamed_predict(network, dataset, flip=flip, mesh=mesh)
    images = devices.replicate(jax.device_put(dataset.test_images), mesh)
    return make_predict(network, images, mean=dataset.mean, std=dataset.std, bgr=dataset.bgr, flip=flip, mesh=mesh)


def _whole_batch_size(batch_size: int, count: int, mesh: Mesh | None) -> int:
    """That of all devices together, with up to ``batch_size`` of ``count`` images on each."""
    parts = 1 if mesh is None else mesh.size
    return min(batch_size, -(-count // parts)) * parts


def _make_scores(
    network: Functional, mean: tuple[float, ...], std: tuple[float, ...], *, bgr: bool, flip: bool
) -> Callable[[list[Array], list[Array], UInt8[Array, "batch h w 3"]], Float[Array, "batch classes"]]:
    def scores_of(
        parameters: list[Array], statistics: list[Array], images: UInt8[Array, "batch h w 3"]
    ) -> Float[Array, "batch classes"]:
        batch = normalise(images, mean, std, bgr=bgr)
        views = (batch, batch[:, :, ::-1]) if flip else (batch,)
        scores = [network.apply(parameters, statistics, view)[0] for view in views]
        wide = [logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) for logits in scores]
        return sum(wide[1:], wide[0]) / len(wide)

    return scores_of


def evaluate_logits(logits: Float[np.ndarray, "n classes"], labels: Int32[np.ndarray, " n"]) -> Evaluation:
    """The mean cross-entropy and the accuracy of class scores."""
    losses = -log_probabilities(logits)[np.arange(len(labels)), labels]
    return Evaluation(float(losses.mean()), float(np.mean(logits.argmax(axis=1) == labels)))


def make_evaluate(predict: Predict, labels: Int32[np.ndarray, " test"]) -> Evaluate:
    """A function ``(parameters, statistics) -> Evaluation`` on the images of these labels that ``predict`` is of."""
    return lambda parameters, statistics: evaluate_logits(predict(parameters, statistics), labels)
