"""A folder of one's own images as a dataset: ``FOLDER/train/CLASS/*`` and ``FOLDER/test/CLASS/*``.

The test part may also be called val, valid or validation, and upper and lower case are the same. A folder without
parts, ``FOLDER/CLASS/*``, is divided by the names of its images.
"""

import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from flax_shufflenet.datasets import held_out
from flax_shufflenet.datasets.data import Dataset, channel_statistics
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.images.reading import ImageError, find, in_threads, leads_back, read_as, stretched

_TRAIN_NAMES = ("train",)
_TEST_NAMES = ("test", "val", "valid", "validation")

# Images that are decoded before they are asked for.
_AHEAD = 64

# Folders, or images that cannot be read, that are named where there are many.
_NAMED = 10


class ImageFiles(NamedTuple):
    """The files of one part of a dataset, where each really lies, the index of its class, and folders in the part that
    cannot be read."""

    folder: Path
    class_names: tuple[str, ...]
    paths: list[Path]
    real_paths: list[str]
    labels: Int32[np.ndarray, " n"]
    unreadable: list[ImageError]

    @property
    def names(self) -> list[str]:
        """CLASS/PATH of each file, the same wherever the folder lies."""
        return [path.relative_to(self.folder).as_posix() for path in self.paths]

    def only(self, chosen: Bool[np.ndarray, " n"]) -> "ImageFiles":
        """Those of the files that are chosen; all classes stay."""
        rows = np.flatnonzero(chosen)
        return self._replace(
            paths=[self.paths[row] for row in rows],
            real_paths=[self.real_paths[row] for row in rows],
            labels=self.labels[rows],
        )


def load(folder: Path, image_size: int, *, test_share: float | None = None, skip_unreadable: bool = False) -> Dataset:
    """The images below ``folder``, stretched to ``image_size`` x ``image_size``; classes are sorted by name.

    Mean and standard deviation are those of the training images. With ``test_share``, the folder has class folders and
    no parts, and so large a share of each class is for testing. What cannot be read is named on stderr, and left out
    with ``skip_unreadable``.

    Raises:
        OptionError: ``test_share`` for a folder that has parts.
        TrainingError: a part or a class is missing, empty or there twice, an image is in two classes or both parts by
            a link, an image or a folder cannot be read, or the folder's or a class's name is not UTF-8.
    """
    return decode(find_parts(folder, test_share), image_size, skip_unreadable=skip_unreadable)


class Parts(NamedTuple):
    """The files to train and to test on, and for people where they are from. ``divided``: they lie in one folder."""

    folder: Path
    train: ImageFiles
    test: ImageFiles
    source: str
    divided: bool

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of a dataset of these files before one is read, as ``DatasetFacts`` has it."""
        return {
            "name": str(self.folder),
            "source": self.source,
            "class_names": self.train.class_names,
            "flip": True,
            "trained_on": held_out.to_text(self.train.names) if self.divided else "",
            "held_out": held_out.to_text(self.test.names) if self.divided else "",
        }


def find_parts(folder: Path, test_share: float | None) -> Parts:
    """The image files below ``folder``; none of them is read yet. The errors are those of ``load``."""
    if test_share is None:
        train, test = _parts(folder)
        _refuse_other_encodings(folder, train)
        return Parts(folder, train, test, f"{train.folder} and {test.folder}", divided=False)
    train, test = _divided(folder, test_share)
    _refuse_other_encodings(folder, train)
    return Parts(folder, train, test, f"{folder}, {test_share:.4g} held out", divided=True)


def _refuse_other_encodings(folder: Path, train: ImageFiles) -> None:
    """A net's file has the names of the dataset and of its classes, in UTF-8."""
    for path in (folder, *(train.folder / name for name in train.class_names)):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            name = os.fsencode(path).decode("utf-8", "backslashreplace")
            raise TrainingError(
                f"{name}: this folder's name is not UTF-8, and a net's file cannot have it: rename the folder"
            ) from None


def decode(parts: Parts, image_size: int, *, skip_unreadable: bool) -> Dataset:
    """Reads all files, as ``load`` does."""
    folder, train, test = parts.folder, parts.train, parts.test
    train_images, train_labels, unreadable = _decode(train, image_size)
    test_images, test_labels, unreadable_too = _decode(test, image_size)
    refuse_or_skip([*unreadable, *unreadable_too], folder, skip=skip_unreadable)
    refuse_empty(train.folder, train.class_names, train_labels, test.folder, test_labels)
    mean, std = channel_statistics(train_images)
    refuse_one_colour(train.folder, std)
    return Dataset(
        **parts.facts,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=mean,
        std=std,
    )


def _parts(folder: Path) -> tuple[ImageFiles, ImageFiles]:
    train_part, test_part = _part(folder, _TRAIN_NAMES), _part(folder, _TEST_NAMES)
    if not (train_part and test_part):
        raise TrainingError(_what_is_missing(folder, train_part, test_part))
    train, test = _files_of(train_part), _files_of(test_part)
    for one, other in ((train, test), (test, train)):
        missing = [name for name in one.class_names if name not in other.class_names]
        if missing:
            raise TrainingError(
                f"{other.folder / missing[0]}: no such folder, but {one.folder} has that class; "
                f"{_found_in(other.folder)}"
            )
    _check_parts_are_apart(train, test)
    return train, test


def _divided(folder: Path, test_share: float) -> tuple[ImageFiles, ImageFiles]:
    train, test = _part(folder, _TRAIN_NAMES), _part(folder, _TEST_NAMES)
    if test:
        raise OptionError(f"--test_share is for a folder without a test part, but {test} is one: leave it out")
    if train:
        raise OptionError(f"--test_share is for a folder of class folders: give --dataset {train}")
    files = _files_of(folder)
    chosen = held_out.choose(files.names, files.labels, test_share)
    if not chosen.any():
        raise TrainingError(f"{folder}: none of its classes has two images, one of them to test on")
    return files.only(~chosen), files.only(chosen)._replace(unreadable=[])


def files_to_test(folder: Path) -> ImageFiles:
    """The files of the folder's test part, or all of a folder that has class folders and no parts.

    Raises:
        TrainingError: it has a training part alone or two test parts, a class is empty, an image is in two classes, or
            a folder cannot be read.
    """
    test = _part(folder, _TEST_NAMES)
    if test is None and _part(folder, _TRAIN_NAMES):
        raise TrainingError(f"{folder}: no test part in it; {_found_in(folder)}; {_expected_in(folder, 'test')}")
    return _files_of(test or folder)


def is_training_part(folder: Path, dataset: Path) -> bool:
    """Whether ``folder`` is the training part of the folder ``dataset``, which need not be there."""
    return any(
        path.name.lower() in _TRAIN_NAMES and path.samefile(folder) for path in dataset.glob("*") if path.is_dir()
    )


def _part(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in ``folder`` that has one of these names, in upper or lower case, and class folders in it: a class
    may have such a name too."""
    found = [path for path in _folders_in(folder) if path.name.lower() in names and _folders_in(path)]
    if len(found) > 1:
        raise TrainingError(
            f"{folder}: {' and '.join(path.name for path in found)} are both in it, and one of them alone can be its "
            f"{names[0]} part: move what is not to be used elsewhere"
        )
    return found[0] if found else None


def _what_is_missing(folder: Path, train: Path | None, test: Path | None) -> str:
    missing = [name for name, part in (("train", train), ("test", test)) if not part]
    advice = ""
    if train:
        advice = f"; or hold images of {train} out with --dataset {train} --test_share 0.1"
    elif not test and len(_folders_in(folder)) > 1:
        advice = "; or, if these are the classes, hold a tenth of each out for testing with --test_share 0.1"
    return (
        f"{folder}: no {' and no '.join(missing)} part in it; {_found_in(folder)}; "
        f"{_expected_in(folder, 'train', 'test')}{advice}"
    )


def _expected_in(folder: Path, *parts: str) -> str:
    places = " and ".join(f"{folder / part}/CLASS" for part in parts)
    return f"images are expected in {places} (or {', '.join(_TEST_NAMES[1:])})"


def _folders_in(folder: Path) -> list[Path]:
    try:
        folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        return sorted(path for path in folders if not (path.is_symlink() and leads_back(path)))
    except OSError as error:
        raise TrainingError(f"{error.filename}: this folder cannot be read ({error.strerror})") from None


def _found_in(folder: Path) -> str:
    """What is in a folder, for people."""
    folders = [f"{path.name}/" for path in _folders_in(folder)]
    listed = folders if len(folders) <= _NAMED else [*folders[:_NAMED], f"{len(folders) - _NAMED} more folders"]
    files = sum(not path.is_dir() for path in folder.iterdir())
    if files:
        listed.append(f"{files} file{'s' if files > 1 else ''}")
    return f"found {', '.join(listed)}" if listed else "it is empty"


def _files_of(part: Path) -> ImageFiles:
    # By names as people read them: macOS takes the letters of a name apart, other systems leave them as they are.
    named = sorted((unicodedata.normalize("NFC", path.name), path) for path in _folders_in(part))
    folders = [path for _, path in named]
    if len(folders) < 2:
        raise TrainingError(f"{part}: it has to have two class folders at least; {_found_in(part)}")
    found = [find(path) for path in folders]
    for path, images in zip(folders, found, strict=True):
        if not (images.paths or images.unreadable):
            raise TrainingError(f"{path}: no images in it")
    files = ImageFiles(
        folder=part,
        class_names=tuple(name for name, _ in named),
        paths=[path for images in found for path in images.paths],
        real_paths=[path for images in found for path in images.real_paths],
        labels=np.repeat(np.arange(len(folders), dtype=np.int32), [len(images.paths) for images in found]),
        unreadable=[error for images in found for error in images.unreadable],
    )
    _check_one_class_each(files)
    return files


def _check_one_class_each(files: ImageFiles) -> None:
    """Within a class, a file counts once whatever its links."""
    names: dict[str, Path] = {}
    for path, real in zip(files.paths, files.real_paths, strict=True):
        other = names.setdefault(real, path)
        if other != path:
            raise TrainingError(f"{path}: the same file as {other}, by a link, and so in two classes: remove the link")


def _check_parts_are_apart(train: ImageFiles, test: ImageFiles) -> None:
    names = dict(zip(train.real_paths, train.paths, strict=True))
    for path, real in zip(test.paths, test.real_paths, strict=True):
        if real in names:
            raise TrainingError(
                f"{path}: the same file as {names[real]}, by a link, and nets are not tested on what they learn: "
                "remove the link"
            )


def _decode(
    files: ImageFiles, image_size: int
) -> tuple[UInt8[np.ndarray, "n size size 3"], Int32[np.ndarray, " n"], list[ImageError]]:
    """Images and labels of the files that can be read, and what cannot."""
    images = np.empty((len(files.paths), image_size, image_size, 3), np.uint8)
    readable, unreadable = [], list(files.unreadable)
    decoded = in_threads(
        lambda path: read_as(path, lambda image: stretched(image, image_size)), files.paths, ahead=_AHEAD
    )
    for row, image in enumerate(decoded):
        if isinstance(image, ImageError):
            unreadable.append(image)
        else:
            images[len(readable)] = image
            readable.append(row)
    return images[: len(readable)], files.labels[readable], unreadable


def refuse_or_skip(unreadable: Sequence[ImageError], folder: Path, *, skip: bool) -> None:
    """Names on stderr, up to ten, what in a folder cannot be read.

    Raises:
        TrainingError: there is such, and ``skip`` does not say to go on without it.
    """
    if not unreadable:
        return
    for error in unreadable[:_NAMED]:
        print(error, file=sys.stderr)
    if len(unreadable) > _NAMED:
        print(f"and {len(unreadable) - _NAMED:,} more", file=sys.stderr)
    said = f"{len(unreadable):,} of the images and folders in {folder} cannot be read"
    if not skip:
        raise TrainingError(f"{said}: repair or remove what is named above, or go on without it with --skip_unreadable")
    print(f"{said}: going on without", file=sys.stderr)


def refuse_empty(
    train: Path,
    class_names: Sequence[str],
    train_labels: Int32[np.ndarray, " train"],
    test: Path,
    test_labels: Int32[np.ndarray, " test"],
) -> None:
    """Raises:
    TrainingError: of these labels, those of the images that can be read, a class has none in training, or the test.
    """
    left = np.bincount(train_labels, minlength=len(class_names))
    if not left.all():
        raise TrainingError(f"{train / class_names[int(left.argmin())]}: no image that can be read to train on")
    if not len(test_labels):
        raise TrainingError(f"{test}: no image that can be read to test on")


def refuse_one_colour(train: Path, std: Sequence[float]) -> None:
    """Raises:
    TrainingError: a channel of the training images has this standard deviation of 0, by which it cannot be divided.
    """
    if min(std) == 0:
        raise TrainingError(f"{train}: all its images are of one colour")
