"""A folder of images as a dataset, from the files to the trained net."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flax_shufflenet as fs
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.images.preprocessing import expected_by
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.description import net_metadata
from flax_shufflenet.training.evaluation import Evaluation
from tests.folder_tools import too_deep


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes with 6 training and 2 test images each, of several sizes and kinds."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name, level in (("dark", 40), ("bright", 180)):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(level, level + 60, (10 + number, 12, 3), dtype=np.uint8)
                ending, image = (".png", pixels) if number % 2 else (".bmp", pixels[..., 0])
                Image.fromarray(image).save(tmp_path / "set" / part / name / f"{number}{ending}")
    return tmp_path / "set"


def test_images_classes_and_statistics(folder, tmp_path):
    (folder / "train" / "notes.txt").write_text("not a class")
    (folder / "train" / "dark" / "notes.txt").write_text("not an image")
    dataset = data.load(str(folder), tmp_path, image_size=16)
    assert dataset.class_names == ("bright", "dark")
    assert dataset.train_images.shape == (12, 16, 16, 3)
    assert dataset.train_labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.test_labels.tolist() == [0, 0, 1, 1]
    assert dataset.flip
    with Image.open(folder / "train" / "dark" / "1.png") as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(dataset.train_images[7], expected)
    np.testing.assert_allclose(dataset.mean, (dataset.train_images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(dataset.std, (dataset.train_images / 255).std((0, 1, 2)))


def test_classes_are_the_same_however_a_system_writes_their_letters(folder, tmp_path):
    for part, name in (("train", "f\u00e4ll"), ("test", unicodedata.normalize("NFD", "f\u00e4ll"))):
        (folder / part / "bright").rename(folder / part / "fall")
        (folder / part / "dark").rename(folder / part / name)
        Image.new("RGB", (9, 9)).save(folder / part / name / "black.png")
    dataset = data.load(str(folder), tmp_path, image_size=16)
    assert dataset.class_names == ("fall", "f\u00e4ll")
    assert dataset.train_labels.tolist() == [0] * 6 + [1] * 7
    assert dataset.test_labels.tolist() == [0] * 2 + [1] * 3


@pytest.mark.parametrize("place", [".", "train/dark"])
def test_folders_whose_names_are_not_utf_8_are_refused(folder, tmp_path, place):
    path = os.fsdecode(b"\xff\xc3\xa4")
    shutil.move(folder / place, (folder / place).resolve().with_name(path))
    if place == ".":
        folder = tmp_path / path
    else:
        (folder / "test" / "dark").rename(folder / "test" / path)
    with pytest.raises(TrainingError, match=r"/\\xff\u00e4: this folder's name is not UTF-8, and a net's file cannot"):
        data.load(str(folder), tmp_path)


@pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION", "Test"])
def test_the_parts_are_found_by_all_their_usual_names(folder, tmp_path, name):
    expected = data.load(str(folder), tmp_path, image_size=16)
    (folder / "test").rename(folder / name)
    (folder / "train").rename(folder / "Train")
    found = data.load(str(folder), tmp_path, image_size=16)
    np.testing.assert_array_equal(found.train_images, expected.train_images)
    np.testing.assert_array_equal(found.test_images, expected.test_images)
    assert found.source == f"{folder / 'Train'} and {folder / name}"


def test_a_net_that_is_trained_on_it_says_what_it_expects(folder, tmp_path):
    config = Config(dataset=str(folder), image_size=16, net_size=0.5)
    dataset = data.load(str(folder), tmp_path, image_size=16)
    metadata = net_metadata(config, dataset, Evaluation(0.1, 0.9), 1)
    expected = expected_by(fs.seed(0.5, 2), metadata)
    assert (expected.size, expected.short_side, expected.class_names) == (16, None, ("bright", "dark"))
    assert (expected.mean, expected.std) == (dataset.mean, dataset.std)
    assert expected.assumed == {}
    assert (metadata["dataset"], metadata["flip"]) == (str(folder), "true")


def damage_no_test(folder: Path) -> tuple[str, str]:
    (folder / "test").rename(folder / "tests")
    (folder / "notes.txt").touch()
    advice = f"; or hold images of {folder}/train out with --dataset {folder}/train --test_share 0.1"
    places = f"{folder}/train/CLASS and {folder}/test/CLASS (or val, valid, validation){advice}"
    return str(folder), f"no test part in it; found tests/, train/, 1 file; images are expected in {places}"


def damage_no_train(folder: Path) -> tuple[str, str]:
    for number in range(11):
        (folder / f"x{number:02}").mkdir()
    shutil.rmtree(folder / "train")
    found = "test/, x00/, x01/, x02/, x03/, x04/, x05/, x06/, x07/, x08/, 2 more folders"
    return str(folder), f"no train part in it; found {found}; images are expected in {folder}/train/CLASS and"


def damage_nothing_there(folder: Path) -> tuple[str, str]:
    shutil.rmtree(folder)
    folder.mkdir()
    return str(folder), "no train and no test part in it; it is empty; images are expected in"


def damage_no_parts(folder: Path) -> tuple[str, str]:
    for path in (folder / "train").iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "test")
    advice = "; or, if these are the classes, hold a tenth of each out for testing with --test_share 0.1"
    places = f"{folder}/train/CLASS and {folder}/test/CLASS (or val, valid, validation)"
    return str(
        folder
    ), f"no train and no test part in it; found bright/, dark/; images are expected in {places}{advice}"


def damage_test_without_classes(folder: Path) -> tuple[str, str]:
    for number, path in enumerate((folder / "test").rglob("*.*")):
        path.rename(folder / "test" / f"{number}{path.suffix}")
    for path in (folder / "test" / "dark", folder / "test" / "bright"):
        path.rmdir()
    return str(folder), "no test part in it; found test/, train/; images are expected in"


def damage_two_test_parts(folder: Path) -> tuple[str, str]:
    shutil.copytree(folder / "test", folder / "Val")
    return str(folder), "Val and test are both in it, and one of them alone can be its test part: move"


def damage_two_train_parts(folder: Path) -> tuple[str, str]:
    shutil.copytree(folder / "train", folder / "TRAIN")
    return str(folder), "TRAIN and train are both in it, and one of them alone can be its train part: move"


def damage_empty_class(folder: Path) -> tuple[str, str]:
    for path in (folder / "train" / "dark").iterdir():
        path.unlink()
    return str(folder / "train" / "dark"), "no images"


def damage_missing_class(folder: Path) -> tuple[str, str]:
    (folder / "test" / "dark").rename(folder / "test" / "dim")
    return str(folder / "test" / "dark"), "has that class; found bright/, dim/"


def damage_one_class(folder: Path) -> tuple[str, str]:
    (folder / "train" / "dark").rename(folder / "dark")
    return str(folder / "train"), "it has to have two class folders at least; found bright/"


def damage_one_colour(folder: Path) -> tuple[str, str]:
    for path in (folder / "train").rglob("*.*"):
        Image.new("RGB", (9, 9), "red").save(path)
    return str(folder / "train"), "one colour"


@pytest.mark.parametrize(
    "damage",
    [
        damage_no_test,
        damage_no_train,
        damage_nothing_there,
        damage_no_parts,
        damage_test_without_classes,
        damage_two_test_parts,
        damage_two_train_parts,
        damage_empty_class,
        damage_missing_class,
        damage_one_class,
        damage_one_colour,
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line_that_names_it(folder, tmp_path, damage):
    place, said = damage(folder)
    with pytest.raises(TrainingError) as raised:
        data.load(str(folder), tmp_path)
    assert str(raised.value).startswith(f"{place}: ")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_links_that_run_in_a_circle_add_no_images(folder, tmp_path):
    before = data.load(str(folder), tmp_path)
    for link, target in (("train/dark/loop", "."), ("train/dark/up", ".."), ("train/loop", "."), ("test/up", "..")):
        (folder / link).symlink_to(target, target_is_directory=True)
    (folder / "train" / "dark" / "again.png").symlink_to("1.png")
    np.testing.assert_array_equal(data.load(str(folder), tmp_path).train_images, before.train_images)


def make_unreadable(folder: Path) -> list[Path]:
    """Of every kind, in both parts, in order: a folder, no image, an empty file, a link to nothing, half an image."""
    train, test = folder / "train" / "dark", folder / "test" / "bright"
    (train / "1.png").write_bytes(b"<html>not found</html>")
    (train / "3.png").write_bytes(b"")
    (train / "9.png").symlink_to("gone.png")
    (test / "1.png").write_bytes((test / "1.png").read_bytes()[:150])
    return [too_deep(train), train / "1.png", train / "3.png", train / "9.png", test / "1.png"]


def test_all_that_cannot_be_read_is_named_at_once(folder, tmp_path, capsys):
    paths = make_unreadable(folder)
    with pytest.raises(TrainingError) as raised:
        data.load(str(folder), tmp_path)
    assert str(raised.value) == (
        f"5 of the images and folders in {folder} cannot be read: repair or remove what is named above, or go on "
        "without it with --skip_unreadable"
    )
    lines = capsys.readouterr().err.splitlines()
    reasons = [
        "this folder cannot be read (File name too long)",
        "cannot be read as an image (cannot identify image file)",
        "cannot be read as an image (cannot identify image file)",
        "no such file",
        "cannot be read as an image (image file is truncated)",
    ]
    assert [line.split(": ")[0] for line in lines] == list(map(str, paths))
    for line, reason in zip(lines, reasons, strict=True):
        assert line.split(": ")[1].startswith(reason.removesuffix(")"))


def test_of_many_that_cannot_be_read_ten_are_named(folder, tmp_path, capsys):
    for number in range(25):
        (folder / "train" / "dark" / f"{number + 100}.png").touch()
    with pytest.raises(TrainingError, match=r"^25 of the images and folders"):
        data.load(str(folder), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[9].startswith(str(folder / "train" / "dark" / "109.png"))
    assert lines[10] == "and 15 more"


def test_what_cannot_be_read_is_named_and_skipped_where_that_is_asked_for(folder, tmp_path, capsys):
    paths = make_unreadable(folder)
    dataset = data.load(str(folder), tmp_path, image_size=16, skip_unreadable=True)
    assert dataset.train_labels.tolist() == [0] * 6 + [1] * 4
    assert dataset.test_labels.tolist() == [0, 1, 1]
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == list(map(str, paths))
    assert last == f"5 of the images and folders in {folder} cannot be read: going on without"
    for path in paths[1:]:
        path.unlink()
    shutil.rmtree(folder / "train" / "dark" / ("x" * 200))
    without = data.load(str(folder), tmp_path, image_size=16)
    np.testing.assert_array_equal(dataset.train_images, without.train_images)
    np.testing.assert_array_equal(dataset.test_images, without.test_images)


def test_nothing_left_to_learn_or_to_test_on_is_an_error(folder, tmp_path):
    for path in (folder / "test").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"/test: no image that can be read to test on$"):
        data.load(str(folder), tmp_path, skip_unreadable=True)
    for path in (folder / "train" / "dark").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"/train/dark: no image that can be read to train on$"):
        data.load(str(folder), tmp_path, skip_unreadable=True)


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        (
            "train/dim",
            "dark",
            "/train/dim/0.bmp: the same file as {}/train/dark/0.bmp, by a link, and so in two classes",
        ),
        ("train/dark/in", "../bright", "/train/dark/in/0.bmp: the same file as {}/train/bright/0.bmp"),
        ("test/dark/9.png", "../../train/dark/1.png", "/test/dark/9.png: the same file as {}/train/dark/1.png"),
    ],
)
def test_an_image_that_links_put_into_two_classes_or_parts_is_refused(folder, tmp_path, link, target, said):
    (folder / link).symlink_to(target)
    if link == "train/dim":
        (folder / "test" / "dim").mkdir()
        Image.new("RGB", (9, 9)).save(folder / "test" / "dim" / "1.png")
    with pytest.raises(TrainingError) as raised:
        data.load(str(folder), tmp_path)
    assert str(raised.value).startswith(f"{folder}{said.format(folder)}")


def test_a_mistyped_dataset_and_a_size_without_a_folder_are_refused(tmp_path):
    with pytest.raises(
        OptionError, match=r"^--dataset cifar11 is neither cifar10, cifar100, digits, imagenet2012 nor a folder$"
    ):
        Config(dataset="cifar11")
    with pytest.raises(
        OptionError, match=r"^--skip_unreadable is for a folder of images and imagenet2012, not for digits$"
    ):
        Config(dataset="digits", skip_unreadable=True)
    with pytest.raises(OptionError, match=r"^--image_size is for a folder"):
        Config(dataset="digits", image_size=64)
    with pytest.raises(OptionError, match=r"^--image_size must be"):
        Config(dataset=str(tmp_path), image_size=4)


def test_results_are_named_after_the_folder(tmp_path):
    assert Config(dataset=f"{tmp_path}/").out_dir == Path("runs") / f"{tmp_path.name}_1.0"
