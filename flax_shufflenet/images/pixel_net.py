"""A net from its file, ready for images as they are in image files: uint8, red, green, blue."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.errors import OptionError
from flax_shufflenet.images.normalisation import Normalisation, normalise
from flax_shufflenet.images.options import ImageOptions
from flax_shufflenet.images.preprocessing import Preprocessing, expected_by
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.shipped import nets as shipped_nets
from flax_shufflenet.weights import ARCHITECTURE_KEY, load, read_metadata

PixelNet = Callable[[UInt8[Array, "n h w 3"]], Float32[Array, "n out"]]


def open_net(
    path: Path, options: ImageOptions, class_names: tuple[str, ...] | None = None
) -> tuple[ShuffleNetV2, Preprocessing]:
    """The net in a file, in float32 and in eval mode, and what it expects of its images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one that ``flax_shufflenet.save`` wrote; the message names it.
        OptionError: not as many ``class_names`` as the net has classes.
    """
    metadata = read_metadata(path)
    model = load(path, dtype=jnp.float32)
    classes = model.architecture.num_classes
    if class_names is not None and len(class_names) != classes:
        raise OptionError(f"--classes has {len(class_names)} names, but {path} has {classes} classes")
    try:
        expected = expected_by(
            model.architecture,
            metadata,
            size=options.size,
            mean=options.mean,
            std=options.std,
            class_names=class_names,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return model, expected


def read_preprocessing(net: str | os.PathLike[str]) -> Preprocessing:
    """What a net expects of its images, by its file or its name among those that come with the package.

    What a file does not tell, such as one that was converted from PyTorch, is assumed from its architecture and its
    layout; ``assumed`` of the outcome has it, and a warning says it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one that ``flax_shufflenet.save`` wrote; the message names it.
    """
    path = shipped_nets.find(Path(net))
    metadata = read_metadata(path)
    try:
        found = expected_by(Architecture.from_json(metadata[ARCHITECTURE_KEY]), metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if found.assumed:
        what = "; ".join(f"{name}: {value}" for name, value in found.assumed.items())
        warnings.warn(f"{path} does not say how it takes its images; assumed are {what}", stacklevel=2)
    return found


def of_pixels(net: Callable[[Array], Array], how: Normalisation) -> PixelNet:
    """A net of normalised images, such as a model or what ``fuse`` makes of it, as a net of uint8 RGB images."""

    def run(pixels: UInt8[Array, "n h w 3"]) -> Float32[Array, "n out"]:
        return net(normalise(pixels, how.mean, how.std, bgr=how.bgr)).astype(jnp.float32)

    return run


def with_mirror_images(net: PixelNet) -> PixelNet:
    """The mean of a net's scores of each image and of its mirror image."""
    return lambda pixels: (net(pixels) + net(pixels[:, :, ::-1])) / 2
