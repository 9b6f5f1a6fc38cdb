"""The net that a run starts from: random weights, or those of a saved net."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_shufflenet import weights
from flax_shufflenet.architecture import FAMILIES, Architecture, preset
from flax_shufflenet.datasets import held_out
from flax_shufflenet.datasets.catalogue import SMALL
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.errors import OptionError, TrainingError, one_line
from flax_shufflenet.images.preprocessing import Preprocessing, expected_by
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.shipped import nets as shipped_nets
from flax_shufflenet.training.config import DEFAULT_FAMILY, Config

_SIDE = 32  # pixels, where nothing says another


class SavedNet(NamedTuple):
    """The net in a file, in eval mode, the names of its classes if the file has them, and how it takes its images."""

    path: Path
    model: ShuffleNetV2
    class_names: tuple[str, ...] | None
    expected: Preprocessing
    trained_on: str
    """The images it was trained on, as ``held_out.to_text`` writes them; empty where its file does not say."""

    @property
    def assumed(self) -> str:
        """Whose values of images are assumed, where its file does not say; empty where it does."""
        return self.expected.assumed.get("normalisation", "")


def read_init(config: Config) -> SavedNet | None:
    """The net to start from; None where that is a new one.

    Raises:
        TrainingError: ``init`` is missing or not a saved net.
    """
    if config.init is None:
        return None
    try:
        file = shipped_nets.find(config.init)
        metadata = weights.read_metadata(file)
        model = weights.load(file, dtype=jnp.dtype(config.dtype))
    except (OSError, ValueError) as error:
        raise TrainingError(f"--init {one_line(error)}") from None
    try:
        expected = expected_by(model.architecture, metadata)
    except ValueError as error:
        raise TrainingError(f"--init {config.init}: {one_line(error)}") from None
    class_names = expected.class_names if expected.names_known else None
    return SavedNet(config.init, model, class_names, expected, metadata.get("trained_on", ""))


def image_size(config: Config, saved: SavedNet | None) -> int:
    """The side of the images to learn from: as given, else what the net expects, a new one or that to start from.

    Raises:
        TrainingError: the net cannot take images of this size.
    """
    architecture = saved.model.architecture if saved else _new_architecture(config, num_classes=1)
    usual = saved.expected.size if saved else expected_by(architecture, {}).size
    side = config.image_size or (_SIDE if config.dataset in SMALL else usual)
    if saved is None and not architecture.pool_size:
        return side
    model = saved.model if saved else nnx.eval_shape(lambda: ShuffleNetV2(architecture, rngs=nnx.Rngs(0)))
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    try:
        nnx.eval_shape(lambda model, images: model(images), model, images)
    except ValueError as error:
        which = f"--init {saved.path}" if saved else f"--family {config.family}"
        advice = "learn from a folder of images, with" if config.dataset in SMALL else "give"
        raise TrainingError(
            f"{which} is made for images of {usual}x{usual} and cannot take {side}x{side}: {advice} --image_size "
            f"{usual} ({one_line(error)})"
        ) from None
    return side


def _new_architecture(config: Config, num_classes: int) -> Architecture:
    assert config.net_size is not None  # Config sees to it
    return preset(config.family or DEFAULT_FAMILY, config.net_size, num_classes)


def as_expected(dataset: AnyDataset, saved: SavedNet | None) -> AnyDataset:
    """The dataset with the normalisation and the order of the channels that the net to start from was trained with, and
    with what that net was trained on beside what the new one will be.

    Raises:
        TrainingError: of the images that are held out, that net was trained on some.
    """
    if saved is None:
        return dataset
    try:
        learnt = held_out.in_both(saved.trained_on, dataset.held_out)
        trained_on = held_out.together(saved.trained_on, dataset.trained_on)
    except ValueError as error:
        raise TrainingError(f"--init {saved.path}: {error}") from None
    if learnt:
        raise TrainingError(
            f"--init {saved.path} was trained on {learnt:,} of the images that are held out for testing, by their "
            "names: give the --test_share that it was trained with, or another net; if they are other images, divide "
            f"them into {dataset.name}/train and {dataset.name}/test"
        )
    expected = saved.expected
    return dataclasses.replace(dataset, mean=expected.mean, std=expected.std, bgr=expected.bgr, trained_on=trained_on)


def initial_model(config: Config, dataset: AnyDataset, saved: SavedNet | None) -> tuple[ShuffleNetV2, str]:
    """The net in train mode, and a line that says what it is.

    Raises:
        OptionError: ``net_size`` is not that of the net in ``init``.
    """
    if saved is not None:
        return _fine_tuned(config, saved, dataset)
    model = _random(config, _new_architecture(config, len(dataset.class_names)))
    return model, f"ShuffleNetV2 {config.net_size}{f' as in {config.family}' if config.family else ''}"


def _random(config: Config, architecture: Architecture) -> ShuffleNetV2:
    return ShuffleNetV2(architecture, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(config.seed))


def _fine_tuned(config: Config, saved: SavedNet, dataset: AnyDataset) -> tuple[ShuffleNetV2, str]:
    path, model = saved.path, saved.model
    if config.net_size is not None and not _has_size(model.architecture, config.net_size):
        raise OptionError(
            f"--net_size {config.net_size} is not that of the net in {path}, whose stages are "
            f"{', '.join(map(str, model.architecture.stage_widths))} wide: leave it out"
        )
    reason = _why_another_head(model.architecture, saved.class_names, dataset)
    if reason:
        model = _with_new_head(config, model, len(dataset.class_names))
    model.train()
    head = f"its classifier made anew for {len(dataset.class_names)} classes: {reason}" if reason else "whole"
    return model, f"ShuffleNetV2 from {path}, {head}"


def _has_size(architecture: Architecture, net_size: float) -> bool:
    sized = (preset(family, net_size) for family in FAMILIES)
    return (architecture.stage_widths, architecture.last_width) in {(net.stage_widths, net.last_width) for net in sized}


def _why_another_head(architecture: Architecture, class_names: tuple[str, ...] | None, dataset: AnyDataset) -> str:
    """Why the saved classifier is of no use for this dataset; empty where it is."""
    if not architecture.num_classes:
        return "the net has none"
    if architecture.num_classes != len(dataset.class_names):
        return f"the net has {architecture.num_classes}"
    if class_names not in (None, dataset.class_names):
        return "the net's have other names"
    return ""


def _with_new_head(config: Config, model: ShuffleNetV2, num_classes: int) -> ShuffleNetV2:
    architecture = dataclasses.replace(model.architecture, num_classes=num_classes)
    arrays = weights.flat_arrays(_random(config, architecture))
    body = {name: array for name, array in weights.flat_arrays(model).items() if not name.startswith("classifier.")}
    arrays = {name: np.asarray(array) for name, array in {**arrays, **body}.items()}
    return weights.from_arrays(architecture, arrays, dtype=jnp.dtype(config.dtype))
