"""ImageNet as TensorFlow Datasets prepares it: JPEG files in a few large files of records, read without TensorFlow."""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int32

from flax_shufflenet.datasets import array_cache
from flax_shufflenet.datasets.catalogue import IMAGENET
from flax_shufflenet.datasets.quiet_tfds import quiet
from flax_shufflenet.datasets.streamed import Files, Part, StreamedDataset, open_parts
from flax_shufflenet.errors import TrainingError, one_line
from flax_shufflenet.images.reading import EncodedImage, ImageError

_PREPARE = f"tfds build {IMAGENET} --file_format=array_record, where TensorFlow is installed"
_READ_AT_ONCE = 256


class Records(Files):
    """The image files of one split, in the order of its records."""

    def __init__(self, builder: Any, folder: Path, split: str) -> None:
        """``builder`` is the one that TFDS makes of ``folder``."""
        self._source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        self._place = folder / split
        self._rows = np.arange(len(self._source))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> EncodedImage:
        try:
            record = self._source[int(self._rows[row])]
        except Exception as error:  # whatever the reader of records or protobuf raises
            raise ImageError(f"{self._place}: record {self._rows[row]} cannot be read ({one_line(error)})") from None
        return EncodedImage(f"{self._place}/{record['file_name'].decode()}", record["image"])

    def identity(self) -> bytes:
        folder, split = self._place.parent, self._place.name
        files = sorted(folder.glob(f"{IMAGENET}-{split}.*"))
        return repr([(file.name, file.stat().st_size) for file in files]).encode() + self._rows.tobytes()

    def only(self, chosen: Bool[np.ndarray, " n"]) -> "Records":
        chosen_records = copy.copy(self)
        chosen_records._rows = self._rows[chosen]
        return chosen_records

    def labels(self) -> Int32[np.ndarray, " n"]:
        """The index of each one's class, for which all records are read."""
        labels = np.empty(len(self), np.int32)
        for start in range(0, len(self), _READ_AT_ONCE):
            rows = self._rows[start : start + _READ_AT_ONCE].tolist()
            labels[start : start + len(rows)] = [record["label"] for record in self._source.__getitems__(rows)]
        return labels


def open_stream(data_dir: Path, image_size: int, *, skip_unreadable: bool) -> StreamedDataset:
    """ImageNet's training images, and those of its validation part to test on.

    Raises:
        TrainingError: it is not in ``data_dir``, is of another format, or cannot be read.
    """
    folder, class_names, train, test = _parts(data_dir, ("train", "validation"))
    facts = {"name": IMAGENET, "source": str(folder), "class_names": class_names, "flip": True}
    return open_parts(facts, folder, train, test, image_size, skip_unreadable=skip_unreadable)


def validation_part(data_dir: Path) -> tuple[Part, tuple[str, ...]]:
    """The validation part, and the names of the classes; the errors are those of ``open_stream``."""
    _, class_names, test = _parts(data_dir, ("validation",))
    return test, class_names


def _parts(data_dir: Path, splits: Sequence[str]) -> tuple[Any, ...]:
    """The folder, the names of the classes, and each of the splits."""
    folder = _newest(data_dir / IMAGENET)
    try:
        with quiet():
            builder: Any = tfds.builder_from_directory(folder)
            files = {split: Records(builder, folder, split) for split in splits}
        labels = _labels(folder, files)
    except Exception as error:  # the readers raise plain RuntimeError, ValueError, NotImplementedError, KeyError ...
        raise TrainingError(
            f"{folder} cannot be read as a TFDS array_record dataset ({one_line(error)}): prepare it with {_PREPARE}, "
            "or choose another --data_dir"
        ) from error
    return (
        folder,
        tuple(builder.info.features["label"].names),
        *(Part(files[key], labels[key], folder / key) for key in splits),
    )


def _newest(folder: Path) -> Path:
    """The folder of the newest version that is prepared."""
    versions = [path.parent for path in folder.glob("*/dataset_info.json")]
    if not versions:
        raise TrainingError(
            f"{folder}: no prepared dataset there. Prepare it with {_PREPARE}; or unpack ImageNet's archives and give "
            "--dataset FOLDER, with the images in FOLDER/train/CLASS and FOLDER/val/CLASS"
        )
    return max(versions, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")])


def _labels(folder: Path, files: dict[str, Records]) -> dict[str, np.ndarray]:
    """Those of each split; they are not kept apart from the images, so all of these are gone through once."""
    cached = array_cache.path_for(f"{IMAGENET}-{'-'.join(files)}-labels", folder)
    labels = array_cache.read(cached, files)
    if labels is None:
        print(f"Reading the labels of {sum(map(len, files.values())):,} images in {folder}, once", file=sys.stderr)
        labels = {split: records.labels() for split, records in files.items()}
        array_cache.write(cached, labels)
    return labels
