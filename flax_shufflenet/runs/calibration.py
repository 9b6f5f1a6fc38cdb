"""How well a net knows when it is right: how sure it is, beside how often it is right."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 15  # of equal width, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599


class Calibration(NamedTuple):
    """Images by how sure the net is of its class: a bin for each ``BINS``-th part of the probabilities from 0 to 1, its
    upper end included. ``images`` counts them; their mean ``confidence`` and ``accuracy`` are 0 where there is none."""

    images: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """The expected calibration error, from 0 to 1: how far confidence and accuracy are apart, over all images."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.images))

    @property
    def tendency(self) -> str:
        """For people: which way confidence and accuracy are apart, over all images."""
        points = 100 * float(np.average(self.confidence - self.accuracy, weights=self.images))
        return f"{abs(points):.2f} points {'surer than right' if points > 0 else 'more often right than sure'}"


def log_probabilities(scores: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """The logarithm of the softmax, in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def calibration(confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> Calibration:
    """Of one image or more: the probability of the class that the net takes each for, and whether it is that."""
    bins = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    images = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, right))
    return Calibration(images, *(total / np.maximum(images, 1) for total in sums))
