"""The page on a run, and its pictures, from a real net and a real folder."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import flax_shufflenet as fs
from flax_shufflenet.datasets import image_folder, streamed
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.runs import plots
from flax_shufflenet.runs.run import RunError
from flax_shufflenet.training.judgement import judge
from flax_shufflenet.training.report import try_report, write_report
from tests.net_tools import new_net
from tests.training.streamed_run import write_images

TINY = fs.Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)

IMAGES = ("train_images", "test_images")


@pytest.fixture
def run_folder(tmp_path, small_dataset):
    """A finished run of one epoch. Its net takes every image for class "a", with a probability of 80 %."""
    model = new_net(TINY)
    model.classifier.kernel[...] *= 0
    assert model.classifier.bias is not None
    model.classifier.bias[...] = np.log(np.array([0.8, 0.1, 0.1], np.float32))
    fs.save(model, tmp_path / "net.safetensors")
    right = int(np.sum(small_dataset.test_labels == 0))
    epoch = {
        "epoch": 1,
        "step": 2,
        "learning_rate": 0.1,
        "train_loss": 1.25,
        "train_accuracy": 0.5,
        "test_loss": None,
        "test_accuracy": right / 10,
        "images_per_second": 1000.0,
        "seconds": 61.0,
    }
    start = {
        "config": {"net_size": 0.5, "dataset": "digits", "epochs": 1, "dtype": "float32", "learning_rate": 0.125},
        "source": "random numbers",
        "train_images": 21,
        "test_images": 10,
        "device": "abacus",
        "platform": "wood",
        "versions": {"jax": "0.1"},
    }
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (start, epoch)))
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the pictures out, which take the longest, for tests that look at none."""
    for name in ("curves", "confusion", "reliability", "hardest"):
        monkeypatch.setattr(plots, name, lambda *_: b"")


def test_the_page_says_what_ran_on_what_with_which_figures(run_folder, small_dataset):
    page = write_report(run_folder, run_folder / "net.safetensors", small_dataset).read_text()
    right = int(np.sum(small_dataset.test_labels == 0))
    assert f"**{10 * right}.00 %** of the 10 test images" in page
    for said in (
        "`learning_rate` | `0.125`",
        "abacus (wood)",
        "jax 0.1",
        "random numbers",
        "1 min 1 s",
        "1,000 images/s",
    ):
        assert said in page
    assert "train 1.2500, test not finite" in page
    assert f"| a | {right} | 100.0 % |" in page
    assert "| b | 0 |  |" in page
    assert f"| c | {10 - right} | 0.0 % |" in page
    assert f"| a ({10 - right}) |" in page
    for name in ("curves.png", "confusion.png", "hardest.png"):
        assert f"({name})" in page
        with Image.open(run_folder / name) as picture:
            assert min(picture.size) > 100


@pytest.mark.usefixtures("undrawn")
def test_names_that_are_not_utf_8_are_no_obstacle(run_folder, small_dataset):
    metrics = run_folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"epochs": 1', r'"epochs": 1, "out": "runs/\udcff"'))
    page = write_report(run_folder, run_folder / "net.safetensors", small_dataset).read_text()
    assert r"| `out` | `runs/\udcff` |" in page


@pytest.mark.usefixtures("undrawn")
def test_a_net_without_mistakes_has_no_hardest_images(run_folder, small_dataset):
    all_a = small_dataset.test_labels == 0
    easy = type(small_dataset)(
        **vars(small_dataset)
        | {"test_images": small_dataset.test_images[all_a], "test_labels": small_dataset.test_labels[all_a]}
    )
    page = write_report(run_folder, run_folder / "net.safetensors", easy).read_text()
    assert "hardest" not in page
    assert not (run_folder / "hardest.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_hardest_are_the_surest_mistakes_worst_first(run_folder, small_dataset, monkeypatch):
    model = fs.load(run_folder / "net.safetensors")
    assert model.classifier.bias is not None
    model.classifier.bias[...] = np.log(np.array([0.15, 0.8, 0.05], np.float32))
    fs.save(model, run_folder / "net.safetensors")
    seen = []
    monkeypatch.setattr(plots, "hardest", lambda images, _: seen.extend(images) or b"")
    write_report(run_folder, run_folder / "net.safetensors", small_dataset)
    labels = small_dataset.test_labels
    assert [one.true for one in seen] == ["c"] * int(np.sum(labels == 2)) + ["a"] * int(np.sum(labels == 0))
    assert all(one.predicted == "b" and abs(one.probability - 0.8) < 1e-6 for one in seen)
    np.testing.assert_array_equal(seen[0].image, small_dataset.test_images[np.flatnonzero(labels == 2)[0]])


def test_a_hundred_classes_are_drawn_with_their_names():
    counts = np.eye(100, dtype=int) * 60 + np.random.default_rng(0).poisson(0.4, (100, 100))
    png = plots.confusion(counts, [f"class_{number}" for number in range(100)], "a hundred")
    assert int.from_bytes(png[16:20], "big") > 2000  # the width, in pixels: a row needs its name


def test_any_class_name_can_be_drawn():
    names = ["$x_$", "\u96ea\udcff", "a$", "long" * 40]
    assert plots.confusion(np.eye(4, dtype=int), names, "names").startswith(b"\x89PNG")
    image = np.zeros((8, 12, 3), np.uint8)
    assert plots.hardest([plots.HardImage(image, names[0], names[1], 0.5)], "names").startswith(b"\x89PNG")


def test_a_report_that_cannot_be_made_is_one_line(run_folder, small_dataset, capsys):
    (run_folder / "net.safetensors").write_bytes(b"no net")
    try_report(run_folder, run_folder / "net.safetensors", small_dataset, Console())
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("the report could not be made: ")
    assert error.count("\n") == 1


def test_a_folder_without_metrics_is_no_run(tmp_path, small_dataset):
    with pytest.raises(RunError, match=r"no metrics\.jsonl"):
        write_report(tmp_path, tmp_path / "net.safetensors", small_dataset)


def test_a_full_disk_is_an_error(run_folder, small_dataset, file_size_limit):
    net_file = run_folder / "net.safetensors"
    said = rf"^no room is left in .*: the report could not be made; the run is done and {net_file} saved$"
    with file_size_limit(1000), pytest.raises(TrainingError, match=said):
        try_report(run_folder, net_file, small_dataset, Console())
    assert not (run_folder / "curves.png").exists()


def test_the_page_says_how_sure_the_net_is_and_what_changed_images_cost(run_folder, small_dataset):
    large = dataclasses.replace(
        small_dataset, **{name: np.repeat(getattr(small_dataset, name), 2, axis=1).repeat(2, axis=2) for name in IMAGES}
    )
    lines = write_report(run_folder, run_folder / "net.safetensors", large).read_text().splitlines()
    right = int(np.sum(large.test_labels == 0))
    # Every image is taken for class "a" with 80 %, whatever is done to it: one bin.
    apart = abs(80 - 10 * right)
    assert (
        f"| expected calibration error, saved net | {apart:.2f} %, in 15 bins ([Calibration](#calibration)) |" in lines
    )
    likelihood = -np.log(np.where(large.test_labels == 0, 0.8, 0.1)).mean()
    assert f"| negative log-likelihood, saved net | {likelihood:.4f} |" in lines
    assert f"| as they are | {10 * right}.00 % |  |" in lines
    for change in ("mirrored left to right", "shifted by 2 pixels", "shifted by 4 pixels"):
        assert f"| {change} | {10 * right}.00 % | +0.00 points |" in lines
    with Image.open(run_folder / "reliability.png") as picture:
        assert min(picture.size) > 100
    assert "![Reliability diagram of the test set](reliability.png)" in lines


@pytest.mark.usefixtures("undrawn")
def test_what_would_mean_nothing_is_left_out_of_the_page_and_that_is_said(run_folder, small_dataset):
    unmirrored = dataclasses.replace(small_dataset, flip=False)
    page = write_report(run_folder, run_folder / "net.safetensors", unmirrored).read_text()
    assert "| mirrored" not in page
    assert "- not mirrored left to right: the training images never are" in page
    assert "- not shifted: images of 8x8 pixels would lose too much" in page


def test_streamed_images_are_judged_as_those_in_memory(tmp_path):
    """Their robustness too, each image decoded once for all its views."""
    folder = write_images(tmp_path / "images", side=30)
    parts = image_folder.find_parts(folder, None)
    model = new_net(dataclasses.replace(TINY, num_classes=2))
    fs.save(model, tmp_path / "net.safetensors")
    on_disk, in_memory = (
        judge(tmp_path / "net.safetensors", dataset, dtype="float32", test_flip=False)
        for dataset in (
            streamed.open_stream(parts, 24, skip_unreadable=False),
            image_folder.load(folder, 24, test_share=None, skip_unreadable=False),
        )
    )
    np.testing.assert_array_equal(on_disk.log_probabilities, in_memory.log_probabilities)
    assert on_disk.robustness.accuracies == in_memory.robustness.accuracies
    assert list(on_disk.robustness.accuracies) == ["flip", "shift_2", "shift_4"]
