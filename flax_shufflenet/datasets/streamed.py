"""Images that stay on disk: what there is to know of them, and their files, to be read batch by batch."""

import abc
import collections
import copy
import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from flax_shufflenet.datasets.data import Dataset, DatasetFacts, channel_statistics
from flax_shufflenet.datasets.image_folder import Parts, refuse_empty, refuse_one_colour, refuse_or_skip
from flax_shufflenet.images.cropping import random_crop
from flax_shufflenet.images.reading import ImageError, ImageFile, centre_crop, in_threads, read, read_as, stretched

# Up to this side, images are stretched to a square, and cropped and mirrored by the train step, as those in memory are.
LARGEST_STRETCHED = 64

# Larger ones are tested as torchvision's newer recipes do: their short side is brought to 232/224 of the size.
_TESTED_SIDES = (224, 232)

# Mean and standard deviation are those of so many training images, where these are larger.
_SAMPLE = 2000

_AHEAD = 64  # images that are decoded before they are asked for


class Files(abc.ABC):
    """The image files of one part of a dataset; processes that read images get a copy."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, row: int) -> ImageFile: ...

    @abc.abstractmethod
    def identity(self) -> bytes:
        """The same for files of the same names and sizes alone, wherever they lie."""

    @abc.abstractmethod
    def only(self, chosen: Bool[np.ndarray, " n"]) -> "Files":
        """Those that are chosen."""


class FileNames(Files):
    """Paths in a folder, in a few bytes each."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self._folder = folder
        self._names = np.array([os.fsencode(path.relative_to(folder)) for path in paths])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Path:
        return self._folder / os.fsdecode(self._names[row])

    def identity(self) -> bytes:
        sizes = [self[row].stat().st_size for row in range(len(self))]
        return self._names.tobytes() + np.array(sizes, np.int64).tobytes()

    def only(self, chosen: Bool[np.ndarray, " n"]) -> "FileNames":
        chosen_files = copy.copy(self)
        chosen_files._names = self._names[chosen]
        return chosen_files


class Part(NamedTuple):
    """Files to train or to test on, the index of each one's class, where they lie, and what is known to be unreadable
    there."""

    files: Files
    labels: Int32[np.ndarray, " n"]
    place: Path
    unreadable: Sequence[ImageError] = ()

    def without(self, rows: Collection[int]) -> "Part":
        if not rows:
            return self
        chosen = ~np.isin(np.arange(len(self.labels)), list(rows))
        return self._replace(files=self.files.only(chosen), labels=self.labels[chosen])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedDataset(DatasetFacts):
    """Image files, and how they are brought to ``image_size`` x ``image_size``.

    ``short_side`` is that of a test image before its centre is cut out, where training takes random crops; None where
    all are stretched. ``skip_unreadable``: another image takes the place of a training image that cannot be read.
    """

    train_files: Files
    test_files: Files
    image_size: int
    skip_unreadable: bool

    pipeline: ClassVar[str] = "stream"

    @property
    def short_side(self) -> int | None:
        if self.image_size <= LARGEST_STRETCHED:
            return None
        crop, whole = _TESTED_SIDES
        return round(self.image_size * whole / crop)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image as a batch has it."""
        return self.image_size, self.image_size, 3

    def train_image(self, row: int, random: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        """One of the training images; where it is not stretched, a random part of it.

        Raises:
            ImageError: it cannot be read.
        """
        file = self.train_files[row]
        if self.short_side is None:
            return stretched(read(file), self.image_size)
        return random_crop(file, self.image_size, random, flip=self.flip)

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
            digest.update(files.identity() + labels.tobytes())
        return digest.hexdigest()


AnyDataset = Dataset | StreamedDataset


def open_stream(parts: Parts, image_size: int, *, skip_unreadable: bool) -> StreamedDataset:
    """A folder's files as a dataset; the errors are those of ``open_parts``."""
    train, test = (
        Part(FileNames(part.folder, part.paths), part.labels, part.folder, part.unreadable)
        for part in (parts.train, parts.test)
    )
    return open_parts(parts.facts, parts.folder, train, test, image_size, skip_unreadable=skip_unreadable)


def open_parts(
    facts: Mapping[str, Any], folder: Path, train: Part, test: Part, image_size: int, *, skip_unreadable: bool
) -> StreamedDataset:
    """Files as a dataset of which ``facts`` are known. Test images, and those whose mean and standard deviation are
    taken, are read once: of images that are stretched all, as where they lie in memory, and of larger ones a sample.

    Raises:
        TrainingError: one of these cannot be read, none of a class or of the test images can, or all that were read are
            of one colour.
    """
    sampled = len(train.labels) if image_size <= LARGEST_STRETCHED else _SAMPLE
    rows = np.unique(np.linspace(0, len(train.labels) - 1, sampled).round().astype(int)).tolist()
    train_damaged: dict[int, ImageError] = {}
    test_damaged: dict[int, ImageError] = {}
    mean, std = channel_statistics(_readable(train.files, rows, image_size, train_damaged))
    collections.deque(_readable(test.files, range(len(test.labels)), image_size, test_damaged), maxlen=0)
    unreadable = [*train.unreadable, *train_damaged.values(), *test.unreadable, *test_damaged.values()]
    refuse_or_skip(unreadable, folder, skip=skip_unreadable)
    train, test = train.without(train_damaged), test.without(test_damaged)
    refuse_empty(train.place, facts["class_names"], train.labels, test.place, test.labels)
    refuse_one_colour(train.place, std)
    return StreamedDataset(
        **facts,
        train_files=train.files,
        train_labels=train.labels,
        test_files=test.files,
        test_labels=test.labels,
        mean=mean,
        std=std,
        image_size=image_size,
        skip_unreadable=skip_unreadable,
    )


def _readable(
    files: Files, rows: Sequence[int], image_size: int, damaged: dict[int, ImageError]
) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """Those of the files that can be read, stretched; the others get into ``damaged``."""
    images = in_threads(lambda row: read_as(files[row], lambda whole: stretched(whole, image_size)), rows, ahead=_AHEAD)
    for row, image in zip(rows, images, strict=True):
        if isinstance(image, ImageError):
            damaged[row] = image
        else:
            yield image
