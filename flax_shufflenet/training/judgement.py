"""What a finished net makes of the test set, for its report."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, UInt8

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.functional import split
from flax_shufflenet.images.pixel_net import of_pixels
from flax_shufflenet.images.robustness import Robustness
from flax_shufflenet.inference import fuse
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.runs.calibration import Calibration, calibration, log_probabilities
from flax_shufflenet.training.evaluation import make_predict_of
from flax_shufflenet.weights import load

_BATCH = 128


class Judgement(NamedTuple):
    """``parameters`` is the net's number of trainable ones. ``counts``: how many images of class (row) it takes for
    class (column)."""

    parameters: int
    log_probabilities: Float[np.ndarray, "test classes"]
    predicted: Int[np.ndarray, " test"]
    counts: Int[np.ndarray, "classes classes"]
    calibration: Calibration
    robustness: Robustness


def judge(net_file: Path, dataset: AnyDataset, *, dtype: str, test_flip: bool) -> Judgement:
    """Runs a net over the test set, once as it is and once for each way in which the images are changed.

    Raises:
        OSError, ValueError: the net, or an image, cannot be read.
    """
    model = load(net_file, dtype=dtype)
    network, parameters, statistics = split(model)
    logits = make_predict_of(network, dataset, flip=test_flip)(parameters, statistics)
    predicted = logits.argmax(axis=1)
    classes = len(dataset.class_names)
    shares = log_probabilities(logits)
    return Judgement(
        sum(array.size for array in parameters),
        shares,
        predicted,
        np.bincount(dataset.test_labels * classes + predicted, minlength=classes**2).reshape(classes, classes),
        calibration(np.exp(shares.max(axis=1)), predicted == dataset.test_labels),
        _robustness(model, dataset, test_flip=test_flip),
    )


def _robustness(model: ShuffleNetV2, dataset: AnyDataset, *, test_flip: bool) -> Robustness:
    net = of_pixels(fuse(model), dataset)
    why_no_flip = "" if dataset.flip else "the training images never are, which might belong to another class then"
    robustness = Robustness(net, dataset.image_size, test_flip=test_flip, why_no_flip=why_no_flip)
    for images, labels in _test_batches(dataset):
        robustness.add(images, labels)
    return robustness


def _test_batches(
    dataset: AnyDataset,
) -> Iterator[tuple[UInt8[np.ndarray, "batch h w 3"], Int32[np.ndarray, " labelled"]]]:
    """All of one length, the last filled up with black; each image is decoded once."""
    labels = dataset.test_labels
    images = iter(dataset.test_images if isinstance(dataset, Dataset) else dataset.test_images(range(len(labels))))
    size = min(_BATCH, len(labels))
    for start in range(0, len(labels), size):
        batch = np.stack(list(itertools.islice(images, size)))
        yield np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)]), labels[start : start + size]
