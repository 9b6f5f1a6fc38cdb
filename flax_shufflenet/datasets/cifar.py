"""CIFAR-10 and CIFAR-100 through TensorFlow Datasets, without TensorFlow.

TFDS's own CIFAR builders unpack, read and encode with TensorFlow. The two below do these three steps with the
standard library and Pillow, and leave the rest (download, checksum, record files, reading) to TFDS. The folders
they prepare are the ones that ``tfds.data_source`` reads, and the reverse.
"""

import contextlib
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import requests
import tensorflow_datasets as tfds
from jaxtyping import Int32, UInt8
from PIL import Image
from tensorflow_datasets.core.download.checksums import get_all_url_infos
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.image_classification import cifar

from flax_shufflenet.datasets.quiet_tfds import quiet
from flax_shufflenet.errors import TrainingError, one_line

# How long the download server may take to answer before it counts as out of reach. Looking up its name has no
# timeout of its own, and TFDS repeats a failed request ten times.
_PROBE_SECONDS = 8

_READ_AT_ONCE = 5_000


class Splits(NamedTuple):
    """Training and test images, and the index of each one's class."""

    train_images: UInt8[np.ndarray, "train 32 32 3"]
    train_labels: Int32[np.ndarray, " train"]
    test_images: UInt8[np.ndarray, "test 32 32 3"]
    test_labels: Int32[np.ndarray, " test"]


class Cifar10(cifar.Cifar10, skip_registration=True):
    """TFDS's ``cifar10``."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        source, features = self._cifar_info, cast("Any", self.info.features)
        files = _read_members(Path(dl_manager.download(source.url)), source)
        for key, file in zip(source.label_keys, source.label_files, strict=True):
            features[key].names = files[file].decode().split()
        return {
            split: self._examples(prefix, [files[name] for name in names])
            for split, prefix, names in (
                ("train", "train_", source.train_files),
                ("test", "test_", source.test_files),
            )
        }

    def _examples(self, prefix: str, files: list[bytes]) -> Iterator[tuple[int, dict]]:
        keys = self._cifar_info.label_keys
        # One record: a byte for each label, then the red, the green and the blue plane, row by row.
        dtype = np.dtype([("labels", np.uint8, len(keys)), ("planes", np.uint8, (3, 32, 32))])
        records = np.concatenate([np.frombuffer(file, dtype) for file in files])
        for index, record in enumerate(records):
            png = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(record["planes"].transpose(1, 2, 0))).save(png, "png")
            png.seek(0)
            labels = dict(zip(keys, np.atleast_1d(record["labels"]).tolist(), strict=True))
            yield index, {**labels, "id": f"{prefix}{index:05d}", "image": png}


class Cifar100(Cifar10, cifar.Cifar100, skip_registration=True):
    """TFDS's ``cifar100``; "label" is the fine label, one of 100."""


def _read_members(archive: Path, source: cifar.CifarInfo) -> dict[str, bytes]:
    """The archive's files that hold data, read by name in one pass; nothing is extracted to disk."""
    wanted = {source.prefix + name: name for name in (*source.train_files, *source.test_files, *source.label_files)}
    files = {}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.isfile() and member.name in wanted and (stream := tar.extractfile(member)):
                files[wanted[member.name]] = stream.read()
    missing = [name for name, file in wanted.items() if file not in files]
    if missing:
        raise TrainingError(f"{archive} has no {', '.join(missing)}")
    return files


def open_builder(builder_class: type[Cifar10], data_dir: Path) -> Cifar10:
    """The builder of a dataset that is prepared in ``data_dir``, which is done first if need be.

    Raises:
        TrainingError: there is no data and no network, or what there is cannot be used.
    """
    folder = data_dir / builder_class.name / str(builder_class.VERSION)
    with quiet():
        try:
            builder = builder_class(data_dir=data_dir, file_format="array_record")
            prepared = builder.is_prepared()
        except Exception as error:  # whatever the JSON parser or the comparison of formats raises
            raise _unusable(folder, one_line(error)) from error
        if not prepared:
            if folder.exists():
                raise _unusable(folder, "it is not complete")
            _prepare(builder, data_dir)
        return builder


def _unusable(folder: Path, reason: str) -> TrainingError:
    return TrainingError(
        f"{folder} cannot be read as a TFDS array_record dataset ({reason}): remove it, and it is made anew, or "
        "choose another --data_dir"
    )


def decode(builder: Cifar10) -> Splits:
    """Reads and decodes every image of a prepared dataset.

    Raises:
        TrainingError: the record files are damaged, missing or of another format.
    """
    try:
        with quiet():
            sources = cast("Any", builder.as_data_source())
            train_images, train_labels = _decode_split(sources["train"])
            test_images, test_labels = _decode_split(sources["test"])
    except Exception as error:  # the readers raise plain RuntimeError, ValueError, NotImplementedError, KeyError ...
        raise _unusable(Path(builder.data_path), one_line(error)) from error
    return Splits(train_images, train_labels, test_images, test_labels)


def class_names(builder: Cifar10) -> tuple[str, ...]:
    """The names of the classes, in the order of their indices."""
    features: Any = builder.info.features
    return tuple(features["label"].names)


def _decode_split(source: Any) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(source), 32, 32, 3), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _READ_AT_ONCE):
        rows = range(start, min(start + _READ_AT_ONCE, len(source)))
        for row, record in zip(rows, source.__getitems__(list(rows)), strict=True):
            images[row], labels[row] = record["image"], record["label"]
    return images, labels


def _prepare(builder: Cifar10, data_dir: Path) -> None:
    source = builder._cifar_info
    expected = (builder.url_infos or get_all_url_infos())[source.url]
    filename = source.url.rpartition("/")[2]
    archive = data_dir / filename
    if not archive.exists() and not _downloaded_before(data_dir, filename):
        advice = f"put {filename} into {data_dir}, or use --dataset digits, which needs no download"
        _require_server(source.url, advice)
        print(f"Downloading {source.url} ({expected.size / 1e6:.0f} MB) to {data_dir}", flush=True)
    print(f"Preparing {builder.name} in {builder.data_path}, once", flush=True)
    options = tfds.download.DownloadConfig(manual_dir=data_dir, try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=options, file_format="array_record")
    except NonMatchingChecksumError:
        raise TrainingError(
            f"{archive if archive.exists() else source.url} is damaged or incomplete: expected {int(expected.size):,} "
            f"bytes with sha256 {expected.checksum}"
        ) from None
    except (OSError, tfds.download.DownloadError) as error:
        raise TrainingError(f"{builder.name} cannot be prepared in {data_dir}: {one_line(error)}") from error


def _downloaded_before(data_dir: Path, filename: str) -> bool:
    return any((data_dir / "downloads").rglob(f"*{filename.removesuffix('.tar.gz')}*.tar.gz"))


def _require_server(url: str, advice: str) -> None:
    failures: list[str] = ["no answer"]

    def probe() -> None:
        try:
            requests.head(url, timeout=_PROBE_SECONDS / 2, allow_redirects=True).raise_for_status()
            failures.clear()
        except requests.RequestException as error:
            failures[:] = [type(error).__name__]

    # A daemon, so that a name look-up that hangs does not keep the process alive.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if failures:
        raise TrainingError(f"{url} cannot be reached ({failures[0]}): {advice}")
