"""The real TFDS builders, checksums, record files and readers, on a tiny archive."""

import io
import os
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import compute_url_info

from flax_shufflenet.datasets import array_cache, cifar, data
from flax_shufflenet.errors import TrainingError


def expected(tiny, names, labels):
    """The images and last labels of these files, image by image, as CIFAR's own description has it."""
    rows = np.concatenate([tiny.records[name] for name in names])
    images = np.stack([np.stack(row[labels:].reshape(3, 32, 32), axis=-1) for row in rows])
    return images, rows[:, labels - 1]


def images_by_content(images, labels):
    return sorted((zlib.crc32(image.tobytes()), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize(
    ("fixture", "train", "test", "labels"),
    [
        ("tiny_cifar10", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], 1),
        ("tiny_cifar100", ["train.bin"], ["test.bin"], 2),
    ],
)
def test_an_archive_on_disk_becomes_a_tfds_dataset(request, fixture, train, test, labels):
    tiny = request.getfixturevalue(fixture)
    builder = cifar.open_builder(tiny.builder, tiny.folder)
    splits = cifar.decode(builder)
    # TFDS shuffles the records, so images are compared as a set.
    assert images_by_content(splits.train_images, splits.train_labels) == images_by_content(
        *expected(tiny, train, labels)
    )
    assert images_by_content(splits.test_images, splits.test_labels) == images_by_content(*expected(tiny, test, labels))
    assert len(cifar.class_names(builder)) == (10 if labels == 1 else 100)
    assert cifar.class_names(builder)[3] == ("batc3" if labels == 1 else "fine3")

    # And TFDS's own, unmodified reader finds the same there.
    sources: Any = tfds.data_source(builder.name, data_dir=tiny.folder, download=False)
    source = sources["train"]
    assert len(source) == len(splits.train_labels)
    np.testing.assert_array_equal(source[0]["image"], splits.train_images[0])
    assert source[0]["label"] == splits.train_labels[0]


def test_a_prepared_dataset_is_read_without_its_archive(tiny_cifar10):
    first = cifar.decode(cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder))
    tiny_cifar10.archive.unlink()
    again = cifar.decode(cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder))
    np.testing.assert_array_equal(first.train_images, again.train_images)


def test_a_truncated_archive_is_refused(tiny_cifar10):
    os.truncate(tiny_cifar10.archive, tiny_cifar10.archive.stat().st_size // 2)
    with pytest.raises(TrainingError, match=r"cifar-10-binary\.tar\.gz is damaged or incomplete") as raised:
        cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder)
    assert "\n" not in str(raised.value)
    assert not (tiny_cifar10.folder / "cifar10" / "3.0.2").exists()


def test_nothing_of_an_archive_is_extracted(tiny_cifar10, tmp_path):
    """Members are read by name: others, wherever they point, are passed over."""
    members = []
    with tarfile.open(tiny_cifar10.archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            members.append((member, file.read()))
    outside = tarfile.TarInfo("../outside.txt")
    outside.size = 4
    link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tiny_cifar10.archive, "w:gz") as tar:
        tar.addfile(outside, io.BytesIO(b"evil"))
        tar.addfile(link)
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    info = compute_url_info(tiny_cifar10.archive)
    url = next(iter(tiny_cifar10.builder.url_infos))
    tiny_cifar10.builder.url_infos = {url: info}
    splits = cifar.decode(cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder))
    assert len(splits.train_labels) == 35
    assert not list(tmp_path.rglob("outside.txt"))
    assert not (tmp_path.parent / "outside.txt").exists()


def test_an_archive_without_a_needed_file_is_named(tiny_cifar10):
    with tarfile.open(tiny_cifar10.archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin"))
    info = compute_url_info(tiny_cifar10.archive)
    tiny_cifar10.builder.url_infos = {next(iter(tiny_cifar10.builder.url_infos)): info}
    with pytest.raises(TrainingError, match=r"has no cifar-10-batches-bin/data_batch_1\.bin"):
        cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder)


def damage_nothing_prepared(folder: Path) -> None:
    (folder / "dataset_info.json").unlink()


def damage_missing_records(folder: Path) -> None:
    next(folder.glob("*test.array_record*")).unlink()


def damage_truncated_records(folder: Path) -> None:
    file = next(folder.glob("*train.array_record*"))
    os.truncate(file, file.stat().st_size // 2)


def damage_other_format(folder: Path) -> None:
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))


def damage_garbled_info(folder: Path) -> None:
    (folder / "dataset_info.json").write_text("{")


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_prepared,
        damage_missing_records,
        damage_truncated_records,
        damage_other_format,
        damage_garbled_info,
    ],
)
def test_a_damaged_dataset_folder_is_one_clear_line(tiny_cifar10, damage):
    folder = Path(cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder).data_path)
    damage(folder)
    with pytest.raises(TrainingError, match="remove it") as raised:
        cifar.decode(cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_decoded_images_come_from_the_cache_until_the_folder_changes(tiny_cifar10, cache_home):
    builder = cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder)
    first = data.load("cifar10", tiny_cifar10.folder)
    (cached,) = cache_home.rglob("cifar10-*.npz")

    marked = array_cache.read(cached, cifar.Splits._fields)
    assert marked is not None
    marked["train_images"][0] = 7
    array_cache.write(cached, marked)
    assert (data.load("cifar10", tiny_cifar10.folder).train_images[0] == 7).all()

    cached.write_bytes(cached.read_bytes()[:1000])  # a damaged cache is decoded anew
    np.testing.assert_array_equal(data.load("cifar10", tiny_cifar10.folder).train_images, first.train_images)

    record_file = next(Path(builder.data_path).glob("*train*"))
    os.utime(record_file, ns=(1, 1))
    data.load("cifar10", tiny_cifar10.folder)
    assert len(list(cache_home.rglob("cifar10-*.npz"))) == 2
    assert not list(cache_home.rglob(".*npz*"))


def test_a_cache_that_cannot_be_written_is_done_without(tiny_cifar10, cache_home):
    cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder)
    cache_home.write_text("not a folder")
    assert len(data.load("cifar10", tiny_cifar10.folder).train_labels) == 35


def test_cifar10_has_the_published_statistics(tiny_cifar10):
    cifar.open_builder(tiny_cifar10.builder, tiny_cifar10.folder)
    shutil.copytree(tiny_cifar10.folder / "cifar10", tiny_cifar10.folder / "copy" / "cifar10")
    dataset = data.load("cifar10", tiny_cifar10.folder / "copy")
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.2023, 0.1994, 0.2010)
    assert dataset.flip
    assert dataset.train_labels.dtype == np.int32


def test_digits_are_scikit_learns_in_a_fixed_stratified_split(tmp_path):
    dataset = data.load("digits", tmp_path)
    assert dataset.train_images.shape == (1437, 32, 32, 3)
    assert dataset.test_images.shape == (360, 32, 32, 3)
    assert not dataset.flip
    train, test = (np.bincount(labels) / len(labels) for labels in (dataset.train_labels, dataset.test_labels))
    np.testing.assert_allclose(train, test, atol=0.004)
    np.testing.assert_allclose((dataset.train_images / 255).mean((0, 1, 2)), dataset.mean)
    np.testing.assert_allclose((dataset.train_images / 255).std((0, 1, 2)), dataset.std)
    again = data.load("digits", tmp_path)
    np.testing.assert_array_equal(dataset.train_images, again.train_images)
    np.testing.assert_array_equal(dataset.test_labels, again.test_labels)
