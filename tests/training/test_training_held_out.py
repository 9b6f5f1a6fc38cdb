"""A folder of classes without parts: which of its images are held out for testing, in training and afterwards."""

import dataclasses
import json
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flax_shufflenet as fs
from flax_shufflenet.commands import evaluate
from flax_shufflenet.datasets import data, held_out
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.description import net_metadata
from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.loop import train
from flax_shufflenet.training.start import as_expected, read_init
from tests.command_tools import run_command
from tests.net_tools import new_net


@pytest.fixture
def folder(tmp_path) -> Path:
    """``flat/{one,two}`` with 10 and 5 noisy images, no two alike, some in a subfolder."""
    random = np.random.default_rng(0)
    for name, count in (("two", 5), ("one", 10)):
        (tmp_path / "flat" / name / "sub").mkdir(parents=True)
        for number in reversed(range(count)):
            place = tmp_path / "flat" / name / ("sub" if number % 3 == 0 else "")
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number}.png")
    return tmp_path / "flat"


# --- which images


def test_the_division_is_the_same_everywhere_and_for_ever():
    names = [f"{name}/{number}.png" for name in ("ant", "bee") for number in range(10)]
    labels = np.repeat(np.arange(2, dtype=np.int32), 10)
    chosen = held_out.choose(names, labels, 0.2)
    # As anyone may compute it: printf ant/0.png | sha256sum, and so on, sorted.
    expected = ["ant/4.png", "ant/6.png", "bee/0.png", "bee/6.png"]
    assert [name for name, test in zip(names, chosen, strict=True) if test] == expected
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(held_out.choose([names[row] for row in order], labels[order], 0.2), chosen[order])


@pytest.mark.parametrize(
    ("count", "share", "tested"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.3, 3), (9, 0.1, 1)]
)
def test_a_class_of_two_or_more_has_both_parts(count, share, tested):
    names = [f"a/{number}" for number in range(count)]
    assert held_out.choose(names, np.zeros(count, np.int32), share).sum() == tested


def test_names_are_the_same_however_a_system_writes_its_letters():
    names = ["l\u00f6we/\u00e9.png", "l\u00f6we/\udcff.png", "l\u00f6we/a.png", "l\u00f6we/b.png"]
    apart = [unicodedata.normalize("NFD", name) for name in names]
    assert apart != names
    labels = np.zeros(4, np.int32)
    np.testing.assert_array_equal(held_out.choose(names, labels, 0.5), held_out.choose(apart, labels, 0.5))
    assert held_out.which_of(apart, held_out.to_text(names[:2])).tolist() == [True, True, False, False]


def test_every_image_is_in_one_part(folder, tmp_path):
    dataset = data.load(str(folder), tmp_path, image_size=8, test_share=0.3)
    assert np.bincount(dataset.train_labels).tolist() == [7, 3]
    assert np.bincount(dataset.test_labels).tolist() == [3, 2]
    images = {image.tobytes() for image in (*dataset.train_images, *dataset.test_images)}
    assert len(images) == 15
    shutil.copytree(folder, tmp_path / "elsewhere")
    again = data.load(str(tmp_path / "elsewhere"), tmp_path, image_size=8, test_share=0.3)
    np.testing.assert_array_equal(again.train_images, dataset.train_images)
    np.testing.assert_array_equal(again.test_images, dataset.test_images)


# --- a run


@pytest.fixture
def net(tmp_path) -> Path:
    """A tiny net, which compiles quickly."""
    architecture = fs.Architecture(stage_widths=(8,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=2)
    fs.save(new_net(architecture), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.mark.usefixtures("without_report")
def test_a_trained_net_is_evaluated_on_what_was_held_out_and_says_so(folder, net, tmp_path, capsys):
    options = {
        "dataset": str(folder),
        "image_size": 8,
        "init": net,
        "batch_size": 4,
        "epochs": 1,
        "out": tmp_path / "out",
    }
    trained = train(Config(**options, test_share=0.3))
    assert f"{folder}, 0.3 held out: 10 training and 5 test images" in capsys.readouterr().out
    saved = tmp_path / "out" / "net.safetensors"
    metadata = fs.read_metadata(saved)
    assert metadata["test_share"] == "0.3"
    assert len(metadata["trained_on"]) == 8 * 10

    code, out, err = run_command(capsys, evaluate, saved, "--json")
    record = json.loads(out)
    assert (code, err, record["images"]) == (0, [], 5)
    assert record["source"] == f"{folder}, its 10 training images left out by their names"
    assert record["accuracy"] == trained.accuracy
    assert record["loss"] == pytest.approx(trained.loss, rel=1e-4)

    said = (
        rf"was trained on \d+ of the images that are held out for testing, by their names: give .*; if they are other "
        rf"images, divide them into {re.escape(str(folder))}/train and "
    )
    with pytest.raises(TrainingError, match=said):
        train(Config(**{**options, "init": saved, "out": tmp_path / "more"}, test_share=0.5))

    # A copy, in which there are new images and some are gone, and without the file's own dataset.
    shutil.copytree(folder, tmp_path / "copy")
    for path in sorted((tmp_path / "copy" / "one").glob("*.png"))[:2]:
        path.unlink()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "copy" / "two" / f"new {number}.png")
    code, out, _ = run_command(capsys, evaluate, saved, "--dataset", tmp_path / "copy")
    names = {"one": range(10), "two": range(5)}
    names = [f"{name}/{'sub/' if number % 3 == 0 else ''}{number}.png" for name in names for number in names[name]]
    tested = held_out.choose(names, np.repeat(np.arange(2, dtype=np.int32), [10, 5]), 0.3)
    gone = {f"one/{number}.png" for number in (1, 2)}
    learnt = sum(name not in gone and not test for name, test in zip(names, tested, strict=True))
    assert (code, out.splitlines()[0]) == (
        0,
        f"data         {tmp_path / 'copy'}, its {learnt} training images left out by their names (if they are others, "
        f"move its classes to {tmp_path / 'copy' / 'test'}): {16 - learnt} test images",
    )

    # Another share would test on images that were trained on.
    (tmp_path / "out" / "net.safetensors").rename(saved.with_name("kept.safetensors"))
    with pytest.raises(
        TrainingError, match=r"^--test_share is 0\.5, but the unfinished run in .* was started with 0\.3: "
    ):
        train(Config(**options, test_share=0.5))


def test_a_net_that_was_trained_twice_knows_what_it_learnt_first(folder, net, small_dataset, tmp_path):
    first = data.load(str(folder), tmp_path, image_size=8, test_share=0.5)
    others = dataclasses.replace(small_dataset, class_names=("one", "two"))  # as those of a folder that has parts
    for dataset in (first, others):
        dataset = as_expected(dataset, read_init(Config(init=net)))
        fs.save(fs.load(net), net, net_metadata(Config(), dataset, Evaluation(0.1, 0.9), 1))
    more = data.load(str(folder), tmp_path, image_size=8, test_share=0.9)
    with pytest.raises(TrainingError, match=r"was trained on \d of the images that are held out for testing"):
        as_expected(more, read_init(Config(init=net)))


def test_nothing_is_tested_where_all_was_learnt_or_the_list_is_damaged(folder, net, tmp_path, capsys):
    names = ["one/a.png", "two/a.png"]
    for name in names:
        (tmp_path / "other" / name).parent.mkdir(parents=True)
        shutil.copy(folder / "one" / "1.png", tmp_path / "other" / name)
    told = {"image_size": "8", "class_names": '["one", "two"]', "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
    for text, said in (
        (held_out.to_text(names), f"{tmp_path / 'other'}: {net} was trained on all 2 images in it, by their names"),
        ("AAAA", f"{net}: its trained_on is not a list of images; the file is damaged or altered"),
        ("?", f"{net}: its trained_on is not a list of images; the file is damaged or altered"),
    ):
        fs.save(fs.load(net), net, told | {"trained_on": text})
        code, out, err = run_command(capsys, evaluate, net, "--dataset", tmp_path / "other")
        assert (code, out, len(err)) == (1, "", 1)
        assert err[0].startswith(f"evaluate: {said}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "digits", "test_share": 0.1}, "--test_share is for a folder of images; digits has test images"),
        ({"test_share": 0.0}, "--test_share must be above 0 and below 1, not 0.0"),
        ({"test_share": 1.0}, "--test_share must be above 0 and below 1, not 1.0"),
        ({"test_share": float("nan")}, "--test_share must be above 0 and below 1, not nan"),
    ],
)
def test_a_share_that_is_none_is_refused(tmp_path, options, said):
    with pytest.raises(OptionError) as raised:
        Config(**{"dataset": str(tmp_path)} | options)
    assert str(raised.value).startswith(said)


def test_a_share_of_a_folder_with_parts_is_refused(folder, tmp_path):
    (tmp_path / "parts").mkdir()
    folder.rename(tmp_path / "parts" / "Train")
    with pytest.raises(OptionError, match=r"^--test_share is for a folder of class folders: give --dataset .*/Train$"):
        data.load(str(tmp_path / "parts"), tmp_path, test_share=0.1)
    shutil.copytree(tmp_path / "parts" / "Train", tmp_path / "parts" / "val")
    with pytest.raises(
        OptionError, match=r"^--test_share is for a folder without a test part, but .*/val is one: leave"
    ):
        data.load(str(tmp_path / "parts"), tmp_path, test_share=0.1)


def test_a_class_may_have_a_parts_name(folder, tmp_path):
    for old, new in (("one", "invalid"), ("two", "valid")):
        shutil.rmtree(folder / old / "sub")
        (folder / old).rename(folder / new)
    assert data.load(str(folder), tmp_path, test_share=0.1).class_names == ("invalid", "valid")


def test_classes_of_one_image_each_cannot_be_divided(folder, tmp_path):
    for name in ("one", "two"):
        shutil.rmtree(folder / name / "sub")
        for path in (folder / name).iterdir():
            if path.name != "1.png":
                path.unlink()
    with pytest.raises(TrainingError, match="none of its classes has two images"):
        data.load(str(folder), tmp_path, test_share=0.1)
