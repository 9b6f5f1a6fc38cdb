"""A folder of images that stays on disk: what there is to know of it, and its files, to be read batch by batch."""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from flax_shufflenet.datasets.data import Dataset, DatasetFacts, channel_statistics
from flax_shufflenet.datasets.image_folder import ImageFiles, Parts, refuse_empty, refuse_one_colour, refuse_or_skip
from flax_shufflenet.images.cropping import random_crop
from flax_shufflenet.images.reading import ImageError, centre_crop, in_threads, read, read_as, stretched

# Up to this side, images are stretched to a square, and cropped and mirrored by the train step, as those in memory are.
LARGEST_STRETCHED = 64

# Larger ones are tested as torchvision's newer recipes do: their short side is brought to 232/224 of the size.
_TESTED_SIDES = (224, 232)

# Mean and standard deviation are those of so many training images, where these are larger.
_SAMPLE = 2000

_AHEAD = 64  # images that are decoded before they are asked for


class FileNames:
    """Paths in a few bytes each: processes that read images get a copy of all."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self._folder = folder
        self._names = np.array([os.fsencode(path.relative_to(folder)) for path in paths])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Path:
        return self._folder / os.fsdecode(self._names[row])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedDataset(DatasetFacts):
    """Image files, and how they are brought to ``image_size`` x ``image_size``.

    ``short_side`` is that of a test image before its centre is cut out, where training takes random crops; None where
    all are stretched. ``skip_unreadable``: another image takes the place of a training image that cannot be read.
    """

    train_files: FileNames
    test_files: FileNames
    image_size: int
    skip_unreadable: bool

    pipeline: ClassVar[str] = "stream"

    @property
    def short_side(self) -> int | None:
        if self.image_size <= LARGEST_STRETCHED:
            return None
        crop, whole = _TESTED_SIDES
        return round(self.image_size * whole / crop)

    def train_image(self, row: int, random: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        """One of the training images; where it is not stretched, a random part of it.

        Raises:
            ImageError: it cannot be read.
        """
        path = self.train_files[row]
        if self.short_side is None:
            return stretched(read(path), self.image_size)
        return random_crop(path, self.image_size, random, flip=self.flip)

    def test_image(self, row: int) -> UInt8[np.ndarray, "size size 3"]:
        """One of the test images.

        Raises:
            ImageError: it cannot be read.
        """
        image = read(self.test_files[row])
        if self.short_side is None:
            return stretched(image, self.image_size)
        return centre_crop(image, self.image_size, self.short_side)

    def test_images(self, rows: Sequence[int]) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """These test images, in order, decoded by several threads."""
        return in_threads(self.test_image, rows, ahead=_AHEAD)

    def fingerprint(self) -> str:
        """The same for files of the same names, sizes and classes alone, wherever their folder lies."""
        digest = hashlib.sha256()
        for files, labels in ((self.train_files, self.train_labels), (self.test_files, self.test_labels)):
            digest.update(files._names.tobytes() + labels.tobytes())
            digest.update(np.array([path.stat().st_size for path in files], np.int64).tobytes())
        return digest.hexdigest()


AnyDataset = Dataset | StreamedDataset


def open_stream(parts: Parts, image_size: int, *, skip_unreadable: bool) -> StreamedDataset:
    """The files as a dataset. Test images, and those whose mean and standard deviation are taken, are read once: of
    images that are stretched all, as where they lie in memory, and of larger ones a sample.

    Raises:
        TrainingError: one of these cannot be read, none of a class or of the test images can, or all that were read are
            of one colour.
    """
    train, test = parts.train, parts.test
    sampled = len(train.paths) if image_size <= LARGEST_STRETCHED else _SAMPLE
    rows = np.unique(np.linspace(0, len(train.paths) - 1, sampled).round().astype(int)).tolist()
    train_damaged: dict[int, ImageError] = {}
    test_damaged: dict[int, ImageError] = {}
    mean, std = channel_statistics(_readable(train, rows, image_size, train_damaged))
    collections.deque(_readable(test, range(len(test.paths)), image_size, test_damaged), maxlen=0)
    unreadable = [*train.unreadable, *train_damaged.values(), *test.unreadable, *test_damaged.values()]
    refuse_or_skip(unreadable, parts.folder, skip=skip_unreadable)
    train, test = _without(train, train_damaged), _without(test, test_damaged)
    refuse_empty(train, train.labels, test, test.labels)
    refuse_one_colour(train, std)
    return StreamedDataset(
        **parts.facts,
        train_files=FileNames(train.folder, train.paths),
        train_labels=train.labels,
        test_files=FileNames(test.folder, test.paths),
        test_labels=test.labels,
        mean=mean,
        std=std,
        image_size=image_size,
        skip_unreadable=skip_unreadable,
    )


def _readable(
    files: ImageFiles, rows: Sequence[int], image_size: int, damaged: dict[int, ImageError]
) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """Those of the files that can be read, stretched; the others get into ``damaged``."""
    paths = [files.paths[row] for row in rows]
    images = in_threads(lambda path: read_as(path, lambda whole: stretched(whole, image_size)), paths, ahead=_AHEAD)
    for row, image in zip(rows, images, strict=True):
        if isinstance(image, ImageError):
            damaged[row] = image
        else:
            yield image


def _without(files: ImageFiles, rows: Collection[int]) -> ImageFiles:
    return files.only(~np.isin(np.arange(len(files.paths)), list(rows)))
