"""What the stem's running statistics say of the images that a net was trained on: their scale, and the first colour.

The stem's convolution has no images before it but the net's own input. Its running mean is the sum of its kernel over
each channel times that channel's mean, which a few dozen kernels tell exactly enough; and its running variance is the
input's variance times what the kernel makes of images with a natural spectrum.
"""

import json
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it

from convert.evidence.statistics import natural_images
from convert.layouts import Layout
from flax_shufflenet import Architecture
from flax_shufflenet.images.preprocessing import IMAGENET_STATISTICS, RAW_STATISTICS, UNIT_STATISTICS, expected_by

Scale = Literal["normalised", "0 to 1", "0 to 255"]
ChannelOrder = Literal["rgb", "bgr"]

_STATISTICS: dict[Scale, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "normalised": IMAGENET_STATISTICS,
    "0 to 1": UNIT_STATISTICS,
    "0 to 255": RAW_STATISTICS,
}
_DESCRIBED: dict[str, str] = {
    "normalised": "normalised images",
    "0 to 1": "values from 0 to 1",
    "0 to 255": "values from 0 to 255",
    "rgb": "red first",
    "bgr": "blue first",
}

# By how much the kernels' variances may differ from those of natural images: standard deviation of their logarithms.
# Where the images are not centred, the means say more: what one mean a channel explains of them, at least.
_MOST_SPREAD = {"centred": 0.6, "not centred": 1.0}
_LEAST_EXPLAINED = 0.95
# Photographs have more red than blue light; by this share of the mean.
_LEAST_COLOUR = 0.05


class InputEvidence(NamedTuple):
    """``mean`` of each channel of the net's input, in its own order, and its ``deviation``, the same for all."""

    mean: tuple[float, float, float]
    deviation: float
    spread: float
    explained: float

    @property
    def scale(self) -> Scale | None:
        """What the images were like; None where that is not clear."""
        ratio = [mean / self.deviation for mean in self.mean]
        if 0.3 < self.deviation < 3 and max(map(abs, ratio)) < 0.5:
            return "normalised" if self.spread <= _MOST_SPREAD["centred"] else None
        if min(ratio) < 0.6 or self.explained < _LEAST_EXPLAINED or self.spread > _MOST_SPREAD["not centred"]:
            return None
        if self.deviation < 0.6 and max(self.mean) < 1:
            return "0 to 1"
        return "0 to 255" if self.deviation > 8 and max(self.mean) < 255 else None

    @property
    def order(self) -> ChannelOrder | None:
        """Which colour comes first, as daylight has it; None where the images are centred, or the colours alike."""
        first, middle, last = self.mean
        if self.scale in (None, "normalised") or abs(first - last) < _LEAST_COLOUR * middle:
            return None
        return "rgb" if first > last else "bgr"


def weigh_input(
    layout: Layout, architecture: Architecture, tensors: Mapping[str, torch.Tensor]
) -> InputEvidence | None:
    """What a checkpoint's tensors, under the layout's names, say; None where its statistics are a fresh net's, or some
    of the numbers not finite."""
    stem = next(part for part in layout.parts_of(architecture) if part.flax == "stem")
    kernel = tensors[f"{stem.conv}.weight"].double()  # [k, 3, 3, 3]
    mean, var = (tensors[f"{stem.bn}.running_{kind}"].double() for kind in ("mean", "var"))
    if architecture.conv_bias:
        mean = mean - tensors[f"{stem.conv}.bias"].double()
    if not all(torch.isfinite(values).all() for values in (kernel, mean, var)) or bool((mean == 0).all()):
        return None
    images = torch.from_numpy(natural_images(4, 64)).permute(0, 3, 1, 2).double()
    natural = F.conv2d(images, kernel).var((0, 2, 3))
    used = (var > 0) & (natural > 0)
    if int(used.sum()) < 6:
        return None
    factors = (var[used] / natural[used]).log()
    by_deviation = 1 / var[used].sqrt()
    sums, means = kernel.sum((2, 3))[used] * by_deviation[:, None], mean[used] * by_deviation
    if not all(torch.isfinite(values).all() for values in (factors, sums, means)):
        return None
    found = torch.linalg.lstsq(sums, means[:, None]).solution[:, 0]
    rest = means - sums @ found
    first, middle, last = found.tolist()
    return InputEvidence(
        mean=(first, middle, last),
        deviation=math.exp(float(factors.median()) / 2),
        spread=float(factors.std()),
        explained=float(1 - rest @ rest / (means @ means)),
    )


def settle_input(
    layout: Layout, architecture: Architecture, tensors: Mapping[str, torch.Tensor]
) -> tuple[list[str], dict[str, str]]:
    """A note for the report on the images that a net takes, and the metadata that its file then needs: none where it
    takes them as its layout's nets usually do, or where its statistics do not tell."""
    found = weigh_input(layout, architecture, tensors)
    if found is None or found.scale is None:
        return [], {}
    expected = expected_by(architecture, {"layout": layout.name})
    usual = next((scale for scale, pair in _STATISTICS.items() if pair == (expected.mean, expected.std)), "normalised")
    usual_order = "bgr" if expected.bgr else "rgb"
    said = " and ".join(_DESCRIBED[choice] for choice in (found.scale, found.order) if choice is not None)
    means = ", ".join(f"{mean:.2g}" for mean in found.mean)
    note = f"input: {said}, as its running statistics say (means {means}, deviation {found.deviation:.2g})"
    if found.scale == usual and found.order in (None, usual_order):
        return [note], {}
    note += f"; unusual for this layout, whose nets take {_DESCRIBED[usual]}, {_DESCRIBED[usual_order]}"
    order = found.order
    if order is None:
        order = usual_order if found.scale == usual else "rgb"
        note += f"; {_DESCRIBED[order]} is assumed"
    note += "; predict and evaluate take it so, or as --mean and --std say"
    mean, std = (expected.mean, expected.std) if found.scale == usual else _STATISTICS[found.scale]
    return [note], {"mean": json.dumps(mean), "std": json.dumps(std), "channel_order": json.dumps(order)}
