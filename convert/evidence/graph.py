"""Whether a checkpoint's running statistics fit the graph that it is taken for.

A proof compares this project's two nets, and says nothing about a third: the one that the checkpoint was trained in.
Its running means do. The batch normalisation before a 1x1 convolution leaves each channel with a mean and a deviation
that are its bias and its scale, and the activation makes of them a mean that a normal distribution predicts. Through
splits, concatenations and shuffles these means go unchanged, so that each 1x1 convolution's own mean is its kernel
times the means of the channels that it reads, whatever the images were. Another activation, shuffle, split or order
of layers reads other means.

What only the stem changes, such as a max-pool, is not seen here: ``convert.evidence.choices`` asks about that.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from convert.layouts import Layout
from convert.mapping import torch_names
from flax_shufflenet import Architecture

# docs/evidence.md has the nets that this was set with.
_LEAST_TENTH = 0.9


class Fit(NamedTuple):
    """The shares of the squares of stored means that the graph explains, over 1x1 convolutions."""

    median: float
    tenth: float
    """A tenth of the convolutions have less."""
    convolutions: int

    @property
    def is_good(self) -> bool:
        return self.tenth >= _LEAST_TENTH


def weigh_graph(layout: Layout, architecture: Architecture, tensors: Mapping[str, torch.Tensor]) -> Fit | None:
    """How well a checkpoint's tensors, under the layout's names, fit the architecture; None where its statistics are a
    fresh net's or not finite."""
    names = torch_names(layout, architecture)
    arrays = {flax: tensors[name].double().numpy() for flax, name in names.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return None
    if not any(array.any() for name, array in arrays.items() if name.endswith(".bn.mean")):
        return None
    net = _Means(arrays, architecture)
    with np.errstate(all="ignore"):
        explained = np.array([net.explained(unit, means) for unit, means in net.read()])
    explained = np.nan_to_num(explained, nan=-np.inf)
    return Fit(float(np.median(explained)), float(np.quantile(explained, 0.1, method="lower")), len(explained))


def note_on_graph(fit: Fit | None) -> list[str]:
    """A line for the report."""
    if fit is None:
        return []
    found = (
        f"the means of {fit.convolutions} 1x1 convolutions are explained to {max(fit.median, 0):.1%} in the median, a "
        f"tenth of them to less than {max(fit.tenth, 0):.1%}"
    )
    if fit.is_good:
        return [f"graph: its running statistics fit: {found}"]
    return [
        f"graph: its running statistics do NOT fit: {found}; a trained net was then trained with another activation, "
        "shuffle or split than nets of this layout have, and computes something else than what is proven here, or its "
        "weights were averaged and its statistics not measured anew: compare its scores with the original's"
    ]


class _Means:
    """The mean of each channel of each map, from the batch normalisations alone."""

    def __init__(self, arrays: Mapping[str, np.ndarray], architecture: Architecture) -> None:
        self.arrays, self.architecture = arrays, architecture

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """The 1x1 convolutions that read what an activation leaves, but for the first, which reads the stem; and the
        means of the channels that each reads.

        The means behind a depthwise convolution are those of its batch normalisation, and none in a net that has hardly
        learnt: they tell nothing."""
        architecture, means = self.architecture, None
        for stage, (width, blocks) in enumerate(zip(architecture.stage_widths, architecture.stage_blocks, strict=True)):
            down = f"stages.{stage}.0"
            if means is not None:
                yield f"{down}.right.0", means
            branches = [self.after(f"{down}.{unit}", active=architecture.down_relu) for unit in ("left.1", "right.2")]
            means = self.shuffled_after(np.concatenate(branches))
            for block in range(1, blocks + 1):
                basic = f"stages.{stage}.{block}.branch"
                if architecture.shuffle == "before":
                    means = _shuffled(means, width // 2)
                passed, own = np.split(means, [architecture.passed_width(width)])
                yield f"{basic}.0", own
                means = self.shuffled_after(np.concatenate([passed, self.after(f"{basic}.2", active=True)]))
        if architecture.last_width:
            assert means is not None
            yield "last", means

    def after(self, unit: str, *, active: bool) -> np.ndarray:
        """The means behind a unit's batch normalisation, and its activation if it is ``active``."""
        bias, scale = (self.arrays[f"{unit}.bn.{kind}"] for kind in ("bias", "scale"))
        slope = self.architecture.negative_slope
        return _rectified(bias, scale) - slope * _rectified(-bias, scale) if active else bias

    def explained(self, unit: str, means: np.ndarray) -> float:
        """The share of the squares of a 1x1 convolution's stored means, each in its own deviations."""
        kernel, var = self.arrays[f"{unit}.conv.kernel"], self.arrays[f"{unit}.bn.var"]
        deviation = np.sqrt(np.maximum(var, 0) + self.architecture.bn_epsilon)
        predicted = kernel.reshape(len(kernel), -1) @ means + self.arrays.get(f"{unit}.conv.bias", 0)
        stored = self.arrays[f"{unit}.bn.mean"] / deviation
        return float(1 - np.square(stored - predicted / deviation).sum() / np.square(stored).sum())

    def shuffled_after(self, means: np.ndarray) -> np.ndarray:
        shuffle, groups = self.architecture.shuffle, self.architecture.shuffle_groups
        if shuffle == "before":
            return means
        return _shuffled(means, groups if shuffle == "after" else len(means) // groups)


def _shuffled(means: np.ndarray, groups: int) -> np.ndarray:
    return means.reshape(groups, -1).T.reshape(-1)


_error_function = np.vectorize(math.erf, otypes=[float])


def _rectified(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The mean of a normal distribution's positive part."""
    deviation = np.maximum(np.abs(deviation), np.finfo(float).tiny)
    place = mean / deviation
    density = np.exp(-np.square(place) / 2) / math.sqrt(2 * math.pi)
    return mean * (1 + _error_function(place / math.sqrt(2))) / 2 + deviation * density
