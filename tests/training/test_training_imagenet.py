"""ImageNet as TensorFlow Datasets has prepared it: the same images as from a folder, trained on, resumed, tested on."""

import json
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import flax_shufflenet as fs
from flax_shufflenet.commands import evaluate
from flax_shufflenet.datasets import image_folder, imagenet, streamed
from flax_shufflenet.datasets.quiet_tfds import quiet
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.system.interruption import Interrupted
from flax_shufflenet.training.config import Config
from tests.command_tools import run_command
from tests.net_tools import new_net
from tests.training.streamed_run import ARCHITECTURE, signal_at, train, write_images
from tests.training.test_training_streaming import check_same_bits

CLASSES = ("n01440764", "n01443537")
SIDE = 72  # large enough for random crops


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS's ``imagenet2012``, of the images of a folder; its own builder unpacks the archives with TensorFlow."""

    VERSION = tfds.core.Version("5.1.0")
    folder: Path

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train"), "validation": self._generate_examples("test")}

    def _generate_examples(self, part):
        for path in sorted((self.folder / part).glob("*/*")):
            name = f"{path.parent.name}_{path.name}"
            yield name, {"image": path.read_bytes(), "label": path.parent.name, "file_name": name}


def prepare(folder: Path, data_dir: Path) -> Path:
    """Returns the folder of the prepared dataset."""
    builder = type("Imagenet2012", (Imagenet2012,), {"folder": folder}, skip_registration=True)(
        data_dir=data_dir, file_format="array_record"
    )
    with quiet():
        builder.download_and_prepare()
    return Path(builder.data_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_images(tmp_path_factory.mktemp("images"), side=90, ending=".jpg")
    for part in ("train", "test"):
        for name, wordnet in zip(("dark", "bright"), CLASSES, strict=True):
            (path / part / name).rename(path / part / wordnet)
    return path


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, folder):
    path = tmp_path_factory.mktemp("tfds")
    prepare(folder, path)
    return path


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    model = new_net(ARCHITECTURE)
    model.eval()
    path = tmp_path_factory.mktemp("nets") / "net.safetensors"
    described = {"image_size": "16", "class_names": json.dumps(CLASSES)}
    fs.save(model, path, described | {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
    return path


def test_images_labels_and_statistics_are_those_of_the_same_folder(folder, data_dir):
    ours = imagenet.open_stream(data_dir, SIDE, skip_unreadable=False)
    expected = streamed.open_stream(image_folder.find_parts(folder, None), SIDE, skip_unreadable=False)
    assert ours.class_names == expected.class_names == CLASSES
    np.testing.assert_allclose((ours.mean, ours.std), (expected.mean, expected.std), rtol=1e-12)
    for files, labels, same_files, same_labels in (
        (ours.train_files, ours.train_labels, expected.train_files, expected.train_labels),
        (ours.test_files, ours.test_labels, expected.test_files, expected.test_labels),
    ):
        paths = [Path(str(same_files[row])) for row in range(len(same_files))]
        row_of = {f"{path.parent.name}_{path.name}": row for row, path in enumerate(paths)}
        rows = [row_of[Path(str(files[row])).name] for row in range(len(files))]
        assert sorted(rows) == list(range(len(same_files)))
        np.testing.assert_array_equal(labels, same_labels[rows])
    rows = [row_of[Path(str(ours.test_files[row])).name] for row in range(len(ours.test_labels))]
    for row, image in enumerate(pickle.loads(pickle.dumps(ours)).test_images(range(len(rows)))):
        np.testing.assert_array_equal(image, expected.test_image(rows[row]))


def test_labels_are_read_once_and_the_newest_version_is_taken(data_dir, tmp_path, capsys):
    shutil.copytree(data_dir, tmp_path / "copy")
    shutil.copytree(tmp_path / "copy/imagenet2012/5.1.0", tmp_path / "copy/imagenet2012/5.0.0")
    first = imagenet.open_stream(tmp_path / "copy", SIDE, skip_unreadable=False)
    place = tmp_path / "copy/imagenet2012/5.1.0"
    assert capsys.readouterr().err == f"Reading the labels of 20 images in {place}, once\n"
    assert first.source == str(place)
    again = imagenet.open_stream(tmp_path / "copy", SIDE, skip_unreadable=False)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(again.train_labels, first.train_labels)
    # Wherever it lies, it is the same dataset; with other bytes it is another.
    assert imagenet.open_stream(data_dir, SIDE, skip_unreadable=False).fingerprint() == first.fingerprint()
    before = first.fingerprint()
    file = next(place.glob("*train*"))
    file.write_bytes(file.read_bytes() + b"\0")
    assert first.fingerprint() != before


@pytest.mark.slow
def test_a_run_is_resumed_to_the_same_bits(tmp_path, data_dir, capsys):
    options = {"data_dir": data_dir, "image_size": SIDE}
    train(Path("imagenet2012"), tmp_path / "undisturbed", **options)
    assert "images  stream: imagenet2012 is read from its records" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as monkeypatch:
        signal_at(4, signal.SIGINT, monkeypatch)
        with pytest.raises(Interrupted):
            train(Path("imagenet2012"), tmp_path / "stopped", **options)
    train(Path("imagenet2012"), tmp_path / "stopped", **options)
    check_same_bits(tmp_path / "stopped", tmp_path / "undisturbed")


def test_evaluation_is_that_of_the_same_folder(folder, data_dir, net, capsys):
    code, out, err = run_command(capsys, evaluate, net, "--dataset", "imagenet2012", "--data_dir", data_dir, "--json")
    assert code == 0, err
    expected = json.loads(run_command(capsys, evaluate, net, "--dataset", folder, "--json")[1])
    record = json.loads(out)
    assert record["source"] == str(data_dir / "imagenet2012/5.1.0/validation")
    assert {name: record[name] for name in ("images", "classes")} == {
        name: expected[name] for name in ("images", "classes")
    }
    assert record["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_a_damaged_image_is_named_and_skipped_on_request(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images/train" / CLASSES[0] / "3.jpg").write_bytes(b"damaged")
    place = prepare(tmp_path / "images", tmp_path / "tfds")
    with pytest.raises(TrainingError, match=f"^1 of the images and folders in {place} cannot be read"):
        imagenet.open_stream(tmp_path / "tfds", SIDE, skip_unreadable=False)
    named = capsys.readouterr().err.splitlines()[-1]
    assert named == f"{place / 'train'}/{CLASSES[0]}_3.jpg: cannot be read as an image (cannot identify image file)"
    kept = imagenet.open_stream(tmp_path / "tfds", SIDE, skip_unreadable=True)
    assert len(kept.train_files) == len(kept.train_labels) == 13
    assert not any(str(kept.train_files[row]).endswith(f"{CLASSES[0]}_3.jpg") for row in range(13))


def test_what_cannot_be_used_is_one_clear_line(tmp_path, data_dir):
    with pytest.raises(TrainingError, match=f"^{tmp_path / 'imagenet2012'}: no prepared dataset there"):
        imagenet.open_stream(tmp_path, SIDE, skip_unreadable=False)
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    place = tmp_path / "imagenet2012/5.1.0"
    description = place / "dataset_info.json"
    whole = description.read_text()
    for damage in (whole.replace("array_record", "tfrecord"), whole[:100]):
        description.write_text(damage)
        with pytest.raises(TrainingError, match=f"^{place} cannot be read as a TFDS array_record dataset") as raised:
            imagenet.open_stream(tmp_path, SIDE, skip_unreadable=False)
        assert "\n" not in str(raised.value)
    with pytest.raises(OptionError, match=r"^--pipeline device cannot be used with --dataset imagenet2012"):
        Config(dataset="imagenet2012", pipeline="device")
    with pytest.raises(OptionError, match=r"^--test_share is for a folder of images; imagenet2012 has test images"):
        Config(dataset="imagenet2012", test_share=0.1)
