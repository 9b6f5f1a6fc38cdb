"""How far apart two nets' gradients or statistics are, each array measured by what a difference in it means."""

from collections.abc import Mapping

import numpy as np


def layer_scales(truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What a difference in each array is measured against: the largest value of the array, or for a scale or bias
    the larger of the two, and for the bias of a convolution the larger of kernel and bias. A bias whose effect the
    next normalisation removes has a true gradient of zero, and its rounding says nothing on its own; the array beside
    it has the same unit."""
    scales = {}
    for name in truth:
        layer, _, kind = name.rpartition(".")
        siblings = [f"{layer}.scale", f"{layer}.bias"] if kind in ("scale", "bias") else [name]
        if name.endswith(".conv.bias"):
            siblings.append(f"{layer}.kernel")
        scales[name] = max(float(np.abs(truth[sibling]).max()) for sibling in siblings if sibling in truth) or 1.0
    return scales


def worst_difference(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative difference over all arrays, and where it is."""
    assert a.keys() == b.keys()
    scales = layer_scales(b)
    return max((float(np.abs(a[name] - b[name]).max()) / scales[name], name) for name in b)


def pooled_error(a: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> float:
    """Root mean square over all arrays of the errors, each array's relative to its scale."""
    assert a.keys() == truth.keys()
    scales = layer_scales(truth)
    errors = [((a[name].astype(np.float64) - truth[name]) / scales[name]).ravel() for name in truth]
    return float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))
