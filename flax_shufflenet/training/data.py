"""Datasets as arrays in memory: decoded once, kept as uint8."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from flax_shufflenet.training import splits_cache

# Per channel, of pixel values from 0 to 1: the figures that published CIFAR nets are trained with.
_CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training and test images, and what a net needs to know of them.

    ``mean`` and ``std`` are per channel, of pixel values from 0 to 1. ``flip`` says whether a mirrored image
    keeps its label. ``source`` says, for people, where the images were read from.
    """

    name: str
    source: str
    train_images: UInt8[np.ndarray, "train h w 3"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test h w 3"]
    test_labels: Int32[np.ndarray, " test"]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool


def load(name: str, data_dir: Path) -> Dataset:
    """The dataset ``cifar10``, ``cifar100`` or ``digits``.

    CIFAR is read from TFDS's folder ``data_dir``, and prepared there if it is not yet. ``digits`` ignores it.

    Raises:
        TrainingError: there is no data and no network, or what there is cannot be used.
    """
    if name == "digits":
        return _digits()
    # Imported here: TFDS takes half a second, and digits does without.
    from flax_shufflenet.training import cifar

    builder = cifar.open_builder(cifar.Cifar10 if name == "cifar10" else cifar.Cifar100, data_dir)
    folder = Path(builder.data_path)
    cached = splits_cache.path_for(name, folder)
    splits = splits_cache.read(cached)
    if splits is None:
        print(f"Decoding {folder}, once", flush=True)
        splits = cifar.decode(builder)
        splits_cache.write(cached, splits)
    mean, std = _CIFAR_STATISTICS[name]
    return Dataset(
        name=name,
        source=str(folder),
        class_names=cifar.class_names(builder),
        mean=mean,
        std=std,
        flip=True,
        **splits._asdict(),
    )


# --- handwritten digits, from scikit-learn's package: real data with no download


def _digits() -> Dataset:
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, target = load_digits(return_X_y=True)
    grey = (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    resized = np.stack(
        [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    )
    images, labels = np.repeat(resized[..., None], 3, axis=-1), target.astype(np.int32)
    # The split is part of the dataset, so it does not depend on the run's seed.
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    mean, std = _channel_statistics(images[train])
    return Dataset(
        name="digits",
        source="scikit-learn",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        flip=False,
    )


def _channel_statistics(
    images: UInt8[np.ndarray, "n h w 3"],
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    pixels = images / 255
    return pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
