"""What ``flax-shufflenet evaluate`` measures: a net's scores of a test set, against its labels."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flax_shufflenet.runs.calibration import Calibration, calibration, log_probabilities

if TYPE_CHECKING:
    from flax_shufflenet.images.pixel_net import PixelNet
    from flax_shufflenet.images.reading import ImageError
    from flax_shufflenet.images.robustness import Robustness

BATCH = 128


class EvaluationSet(NamedTuple):
    """Test images, a batch at a time: uint8 [n, size, size, 3], and their labels.

    ``size`` counts those that cannot be read too; ``unreadable`` gets them on the way.
    """

    source: str
    class_names: tuple[str, ...]
    size: int
    batches: Iterable[tuple[np.ndarray, np.ndarray]]
    unreadable: "list[ImageError]"


class Result(NamedTuple):
    """``images`` and ``correct`` are counts for each class; ``loss`` is the mean negative log-likelihood."""

    images: np.ndarray
    correct: np.ndarray
    loss: float
    calibration: Calibration
    images_per_second: float
    device: str

    @property
    def accuracy(self) -> float:
        return float(self.correct.sum() / self.images.sum())


def measure(net: "PixelNet", test: EvaluationSet, size: int, robustness: "Robustness | None" = None) -> Result:
    """Runs a net on every test image once, and gives ``robustness`` all of them too.

    The images per second count everything but compiling and ``robustness``.
    """
    import jax

    from flax_shufflenet.inference import batch_options

    batch_size = max(1, min(BATCH, test.size))
    pixels = jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8)
    run_net = jax.jit(net, compiler_options=batch_options()).lower(pixels).compile()
    images = np.zeros(len(test.class_names), int)
    correct = np.zeros_like(images)
    loss, elsewhere = 0.0, 0.0
    confidences, rights = [], []
    started = time.perf_counter()
    for pixels, labels in test.batches:
        # The last batch is filled up, rather than compiled for.
        padded = np.pad(pixels, [(0, batch_size - len(pixels)), (0, 0), (0, 0), (0, 0)])
        scores = np.asarray(run_net(padded))[: len(pixels)]
        shares = log_probabilities(scores)
        loss -= float(np.sum(shares[np.arange(len(labels)), labels]))
        right = scores.argmax(axis=1) == labels
        confidences.append(np.exp(shares.max(axis=1)))
        rights.append(right)
        images += np.bincount(labels, minlength=len(images))
        correct += np.bincount(labels[right], minlength=len(images))
        if robustness is not None:
            begun = time.perf_counter()
            robustness.add(padded, labels)
            elsewhere += time.perf_counter() - begun
    seconds = time.perf_counter() - started - elsewhere
    count = int(images.sum())
    calibrated = calibration(np.concatenate(confidences), np.concatenate(rights))
    return Result(images, correct, loss / count, calibrated, count / seconds, jax.devices()[0].device_kind)
