"""Datasets as arrays in memory: decoded once, kept as uint8."""

import dataclasses
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32, UInt8

from flax_shufflenet.datasets import array_cache
from flax_shufflenet.datasets.catalogue import SMALL
from flax_shufflenet.images.preprocessing import CIFAR_STATISTICS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What a net needs to know of training and test images, wherever they lie.

    ``mean`` and ``std`` are of red, green and blue, of pixel values from 0 to 1; they are those of the data, unless the
    net to start from was trained with others. ``bgr`` says that the net takes blue first. ``flip`` says whether a
    mirrored image keeps its label. ``source`` says, for people, where the images were read from. ``trained_on`` and
    ``held_out`` are the names of the training and of the test images, as ``held_out.to_text`` has them, where the two
    lie in one folder; in ``trained_on`` are also those that the net to start from was trained on.
    """

    name: str
    source: str
    train_labels: Int32[np.ndarray, " train"]
    test_labels: Int32[np.ndarray, " test"]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    bgr: bool = False
    trained_on: str = ""
    held_out: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(DatasetFacts):
    """All images in memory."""

    train_images: UInt8[np.ndarray, "train h w 3"]
    test_images: UInt8[np.ndarray, "test h w 3"]

    pipeline: ClassVar[str] = "device"
    short_side: ClassVar[None] = None  # a whole image is stretched to a square

    @property
    def image_size(self) -> int:
        """The images' side in pixels."""
        return self.train_images.shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image as it lies in memory."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    def test_image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """One of the test images."""
        return self.test_images[row]

    def fingerprint(self) -> str:
        """The same for the same images and labels alone."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr((array.shape, str(array.dtype))).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()


def load(
    name: str,
    data_dir: Path,
    *,
    image_size: int = 32,
    test_share: float | None = None,
    skip_unreadable: bool = False,
) -> Dataset:
    """The dataset ``cifar10``, ``cifar100`` or ``digits``, or the images in the folder ``name``.

    CIFAR is read from TFDS's folder ``data_dir``, and prepared there if it is not yet; the others ignore it. A
    folder's images are stretched to ``image_size`` x ``image_size``; all others are 32x32. ``test_share`` of a folder
    without parts is held out for testing, and ``skip_unreadable`` leaves out those of its images that cannot be read.

    Raises:
        OptionError: ``test_share`` for a folder that has parts.
        TrainingError: there is no data and no network, or what there is cannot be used.
    """
    if name == "digits":
        return _digits()
    if name not in SMALL:
        from flax_shufflenet.datasets import image_folder

        return image_folder.load(Path(name), image_size, test_share=test_share, skip_unreadable=skip_unreadable)
    # Imported here: TFDS takes half a second, and digits does without.
    from flax_shufflenet.datasets import cifar

    builder = cifar.open_builder(cifar.Cifar10 if name == "cifar10" else cifar.Cifar100, data_dir)
    folder = Path(builder.data_path)
    cached = array_cache.path_for(name, folder)
    splits: dict[str, Any] | None = array_cache.read(cached, cifar.Splits._fields)
    if splits is None:
        print(f"Decoding {folder}, once", file=sys.stderr)
        splits = cifar.decode(builder)._asdict()
        array_cache.write(cached, splits)
    mean, std = CIFAR_STATISTICS[name]
    return Dataset(
        name=name,
        source=str(folder),
        class_names=cifar.class_names(builder),
        mean=mean,
        std=std,
        flip=True,
        **splits,
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
    images, labels = np.repeat(resized[..., None], 3, axis=-1), np.asarray(target, np.int32)
    # The split is part of the dataset, so it does not depend on the run's seed.
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    mean, std = channel_statistics(images[train])
    return Dataset(
        name="digits",
        source="scikit-learn",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
        mean=mean,
        std=std,
        flip=False,
    )


def channel_statistics(images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel's values, from 0 to 1; both 0 where there is no image."""
    # Counted, not summed as floats, which would take eight times the images' memory.
    counts = np.zeros((3, 256), np.int64)
    for image in images:
        for channel in range(3):
            counts[channel] += np.bincount(image[..., channel].ravel(), minlength=256)
    shares, values = counts / np.maximum(counts.sum(1, keepdims=True), 1), np.arange(256) / 255
    means = shares @ values
    stds = np.sqrt((shares * (values - means[:, None]) ** 2).sum(1))
    return tuple(means.tolist()), tuple(stds.tolist())
