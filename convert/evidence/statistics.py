"""What a checkpoint's running statistics say about choices that names and shapes leave open.

A trained net's running means were gathered behind the right graph. The mean that the batch normalisation of a 1x1
convolution sees is that convolution's kernel times the means of what it reads, and these follow from the scale and the
bias of the batch normalisation before, whatever the images were: only what lies between the two (a max-pool, a
LeakyReLU, a shuffle) changes them. Both graphs are run in train mode, on images with a natural spectrum, and the stored
means are placed on the line between the means that the two graphs predict.
"""

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from convert.layouts import Layout
from flax_shufflenet import Architecture

AFTER_THE_STEM = "stages.0.0.right.0"
AFTER_A_SHUFFLE = "stages.0.1.branch.0"

# Places up to which it is the first hypothesis, and from which on it is the second (docs/evidence.md). The smoother the
# images, the less a max-pool moves the means: behind one, nets of images enlarged 14 times lie at 0.06, and without one
# nets lie at up to 0.09. Activations and shuffles do not depend on that.
_LIMITS = {AFTER_THE_STEM: (0.03, 0.2), AFTER_A_SHUFFLE: (0.12, 0.2)}
# Of the stored means' squares, what a point on the line explains at least. Statistics that no graph gathered have less.
_LEAST_EXPLAINED = 0.9

_IMAGES, _SIDE = 16, 64


class Hypothesis(NamedTuple):
    """A graph that the tensors could belong to."""

    layout: Layout
    architecture: Architecture


class Evidence(NamedTuple):
    """Where the stored means lie: at 0 as the first hypothesis predicts them, at 1 as the second does.

    ``explained`` is the share of their squares that the nearest point of the line explains. ``limits`` are the places
    up to which it is the first, and from which on it is the second.
    """

    place: float
    explained: float
    limits: tuple[float, float]

    @property
    def fits(self) -> bool:
        """Whether the stored means are those of a graph between the two."""
        return self.explained >= _LEAST_EXPLAINED

    @property
    def says(self) -> int | None:
        """0 or 1, the hypothesis that the statistics speak for; None where they do not tell."""
        if not self.fits:
            return None
        first_up_to, second_from = self.limits
        if self.place <= first_up_to:
            return 0
        return 1 if self.place >= second_from else None


def weigh(first: Hypothesis, second: Hypothesis, tensors: Mapping[str, torch.Tensor], where: str) -> Evidence | None:
    """Places the running means of the 1x1 convolution ``where``, AFTER_THE_STEM or AFTER_A_SHUFFLE, between hypotheses.

    ``tensors`` are a checkpoint's under the names of both layouts, [out, in, h, w] and so on. None where there is no
    such convolution, or its statistics are those of a fresh net or not finite.
    """
    parts = {part.flax: part.bn for part in first.layout.parts_of(first.architecture)}
    if where not in parts:
        return None
    mean, var = (tensors[f"{parts[where]}.running_{kind}"].double().numpy() for kind in ("mean", "var"))
    if not (np.isfinite(mean).all() and np.isfinite(var).all()) or (np.all(mean == 0) and np.all(var == 1)):
        return None
    deviation = np.sqrt(np.maximum(var, 0) + first.architecture.bn_epsilon)
    images = torch.from_numpy(natural_images(_IMAGES, _SIDE).transpose(0, 3, 1, 2))
    predicted = [_predicted_mean(hypothesis, tensors, where, images) / deviation for hypothesis in (first, second)]
    if not np.isfinite(predicted).all():
        return None
    stored = mean / deviation
    line, from_first = predicted[1] - predicted[0], stored - predicted[0]
    if not line.any() or not stored.any():
        return None
    place = float(line @ from_first / (line @ line))
    rest = from_first - place * line
    return Evidence(place, float(1 - rest @ rest / (stored @ stored)), _LIMITS[where])


class _SeenEnoughError(Exception):
    """Ends a forward pass."""


def _predicted_mean(
    hypothesis: Hypothesis, tensors: Mapping[str, torch.Tensor], where: str, images: torch.Tensor
) -> np.ndarray:
    """Of what the batch normalisation ``where`` gets in train mode for ``images`` [n, 3, h, w], for each channel."""
    layout, architecture = hypothesis
    net = layout.reference_to_fill(architecture)
    # Copies: in train mode the net goes on with its statistics.
    net.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    net.float().train()
    (name,) = (part.bn for part in layout.parts_of(architecture) if part.flax == where)
    seen = []

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].double().mean((0, 2, 3)).numpy())
        raise _SeenEnoughError

    net.get_submodule(name).register_forward_pre_hook(see)
    with torch.no_grad(), contextlib.suppress(_SeenEnoughError):
        net(images)
    return seen[0]


def natural_images(count: int, side: int) -> np.ndarray:
    """Noise with the spectrum and the colours of photographs, float32 [count, side, side, 3], normalised.

    Amplitudes fall as 1 / frequency (Field 1987), and the channels share most of their variance.
    """
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1 / side
    spectrum = np.fft.fft2(random.standard_normal((count, 3, side, side))) / frequency
    light, blue_yellow, green_magenta = np.moveaxis(np.fft.ifft2(spectrum).real, 1, 0)
    red = light + 0.25 * blue_yellow + 0.1 * green_magenta
    green = light - 0.15 * green_magenta
    blue = light - 0.25 * blue_yellow + 0.1 * green_magenta
    images = np.stack([red, green, blue], axis=-1)
    return ((images - images.mean((0, 1, 2))) / images.std((0, 1, 2))).astype(np.float32)
