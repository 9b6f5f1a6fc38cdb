"""The net that a run starts from: random weights, or those of a saved net."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_shufflenet import weights
from flax_shufflenet.architecture import FAMILIES, Architecture, preset, seed
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.training.config import Config, OptionError, TrainingError, one_line
from flax_shufflenet.training.data import Dataset


def initial_model(config: Config, dataset: Dataset) -> tuple[ShuffleNetV2, str]:
    """The net in train mode, and a line that says what it is.

    Raises:
        OptionError: ``net_size`` is not that of the net in ``init``.
        TrainingError: ``init`` is missing, not a saved net, or cannot take images of this size.
    """
    if config.init is not None:
        return _fine_tuned(config, config.init, dataset)
    assert config.net_size is not None  # Config sees to it
    model = _random(config, seed(config.net_size, len(dataset.class_names)))
    return model, f"ShuffleNetV2 {config.net_size}"


def _random(config: Config, architecture: Architecture) -> ShuffleNetV2:
    return ShuffleNetV2(architecture, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(config.seed))


def _fine_tuned(config: Config, path: Path, dataset: Dataset) -> tuple[ShuffleNetV2, str]:
    try:
        metadata = weights.read_metadata(path)
        classes = json.loads(metadata.get("class_names", "null"))
        model = weights.load(path, dtype=jnp.dtype(config.dtype))
    except (OSError, ValueError) as error:
        raise TrainingError(f"--init {one_line(error)}") from None
    if config.net_size is not None and not _has_size(model.architecture, config.net_size):
        raise OptionError(
            f"--net_size {config.net_size} is not that of the net in {path}, whose stages are "
            f"{', '.join(map(str, model.architecture.stage_widths))} wide: leave it out"
        )
    reason = _why_another_head(model.architecture, classes, dataset)
    if reason:
        model = _with_new_head(config, model, len(dataset.class_names))
    _check_image_size(model, path, dataset)
    model.train()
    head = f"its classifier made anew for {len(dataset.class_names)} classes: {reason}" if reason else "whole"
    return model, f"ShuffleNetV2 from {path}, {head}"


def _has_size(architecture: Architecture, net_size: float) -> bool:
    sized = (preset(family, net_size) for family in FAMILIES)
    return (architecture.stage_widths, architecture.last_width) in {(net.stage_widths, net.last_width) for net in sized}


def _why_another_head(architecture: Architecture, classes: list[str] | None, dataset: Dataset) -> str:
    """Why the saved classifier is of no use for this dataset; empty where it is."""
    if not architecture.num_classes:
        return "the net has none"
    if architecture.num_classes != len(dataset.class_names):
        return f"the net has {architecture.num_classes}"
    if classes not in (None, list(dataset.class_names)):
        return "the net's have other names"
    return ""


def _with_new_head(config: Config, model: ShuffleNetV2, num_classes: int) -> ShuffleNetV2:
    architecture = dataclasses.replace(model.architecture, num_classes=num_classes)
    arrays = weights.flat_arrays(_random(config, architecture))
    body = {name: array for name, array in weights.flat_arrays(model).items() if not name.startswith("classifier.")}
    arrays = {name: np.asarray(array) for name, array in {**arrays, **body}.items()}
    return weights.from_arrays(architecture, arrays, dtype=jnp.dtype(config.dtype))


def _check_image_size(model: ShuffleNetV2, path: Path, dataset: Dataset) -> None:
    images = jax.ShapeDtypeStruct((1, *dataset.test_images.shape[1:]), jnp.float32)
    try:
        nnx.eval_shape(lambda images: model(images), images)
    except ValueError as error:
        raise TrainingError(f"--init {path} cannot learn {dataset.name}: {one_line(error)}") from None
