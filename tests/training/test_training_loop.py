"""What ends a run, and what starts none."""

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import flax_shufflenet as fs
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.images.preprocessing import expected_by
from flax_shufflenet.training import loop
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.loop import train
from flax_shufflenet.training.step import StepMetrics
from flax_shufflenet.training.totals import EpochTotals
from tests.net_tools import apply, new_net


def test_totals_are_means_over_the_images_of_the_steps_so_far():
    totals = EpochTotals(batch_size=8, epoch=1, epochs=2)
    totals.add(1, StepMetrics(jnp.float32(1.0), jnp.int32(2)))
    totals.add(2, StepMetrics(jnp.float32(2.0), jnp.int32(6)))
    assert totals.loss == 1.5
    assert totals.accuracy == 0.5


@pytest.mark.parametrize("loss", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(loss):
    totals = EpochTotals(batch_size=8, epoch=3, epochs=5)
    totals.add(100, StepMetrics(jnp.float32(1.0), jnp.int32(2)))
    with pytest.raises(FloatingPointError, match=rf"the loss is {loss} at step 101 \(epoch 3/5\)"):
        totals.add(101, StepMetrics(jnp.float32(loss), jnp.int32(0)))


def test_a_net_is_not_replaced_before_any_work_is_done(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"precious")
    with pytest.raises(TrainingError, match="--force"):
        train(Config(out=tmp_path, data_dir=tmp_path))  # there is no data either
    assert (tmp_path / "net.safetensors").read_bytes() == b"precious"


DIGITS = {"dataset": "digits", "net_size": 0.5, "epochs": 3}


def write_metrics(folder, epochs, **options):
    """Those of a run of ``DIGITS``, after so many epochs."""
    config = {name: str(value) if isinstance(value, Path) else value for name, value in vars(Config(**DIGITS)).items()}
    done = {"test_accuracy": 0.5, "seconds": 1.0, "images_per_second": 1.0}
    records = [{"config": config | options}, *({"epoch": number + 1, **done} for number in range(epochs))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize(
    ("epochs", "options", "files", "named"),
    [
        (3, {}, ["best.safetensors", "report.md"], "best.safetensors, metrics.jsonl, report.md"),
        (1, {}, ["report.md"], "metrics.jsonl, report.md"),
        (2, {}, ["best.safetensors"], "best.safetensors, metrics.jsonl"),
        (1, {"seed": 1}, ["best.safetensors"], "best.safetensors, metrics.jsonl"),
        (None, {}, ["best.safetensors"], "best.safetensors"),
    ],
)
def test_results_without_a_checkpoint_are_not_replaced(tmp_path, epochs, options, files, named):
    if epochs is not None:
        write_metrics(tmp_path, epochs, **options)
    for name in files:
        (tmp_path / name).write_bytes(b"precious")
    said = rf"^{re.escape(str(tmp_path))} has results of a run, but no checkpoint to go on from \({named}\): choose"
    with pytest.raises(TrainingError, match=said):
        train(Config(**DIGITS, out=tmp_path))
    assert all((tmp_path / name).read_bytes() == b"precious" for name in files)


@pytest.mark.parametrize(
    ("epochs", "options", "files"),
    [(1, {"out": "elsewhere"}, ["best.safetensors"]), (0, {"seed": 1}, []), (3, {"seed": 1}, ["checkpoints/5/state"])],
)
def test_what_a_run_left_that_was_killed_is_gone_on_with_or_begun_again(tmp_path, monkeypatch, epochs, options, files):
    write_metrics(tmp_path, epochs, **options)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(loop, "_train", lambda *_: Evaluation(0.5, 0.5))
    assert train(Config(**DIGITS, out=tmp_path)).accuracy == 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"net_size": 0.7},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -0.1},
        {"weight_decay": float("inf")},
        {"momentum": 1.0},
        {"seed": -1},
        {"seed": 2**31},
        {"warmup_epochs": -1.0},
        {"warmup_epochs": 3.0, "epochs": 3},
        {"label_smoothing": 1.0},
        {"ema": 1.0},
        {"crop_padding": -1},
        {"random_erasing": 1.5},
        {"random_erasing": float("nan")},
    ],
)
def test_values_out_of_range_name_their_option(options):
    with pytest.raises(OptionError, match=f"^--{next(iter(options))} must be "):
        Config(**options)


def test_results_in_a_folder_whose_folders_are_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = r"^--out runs/.*_1\.0 lies in --dataset \., of which --test_share takes each folder for a class: choose"
    with pytest.raises(OptionError, match=said):
        Config(dataset=".", test_share=0.2)
    assert Config(dataset=".").out_dir.parent.name == "runs"  # beside train and test


@pytest.mark.parametrize(
    ("name", "shown"), [("[lr=0.1]", "[lr=0.1]"), ("*", "*"), ("what?", "what?"), ("\udcff\u00e4", "\\xff\u00e4")]
)
def test_a_folder_in_which_checkpoints_cannot_lie_is_refused(tmp_path, monkeypatch, name, shown):
    said = rf"^--out {re.escape(f'{tmp_path}/{shown}/out')} has \[, \* or \? in it, or bytes that are not UTF-8, and "
    with pytest.raises(OptionError, match=said):
        Config(out=tmp_path / name / "out")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(OptionError, match=said):
        Config(out=Path("out"))


def test_a_folder_is_the_same_however_its_name_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "digits").mkdir()
    assert {Config(dataset=name).dataset for name in ("set", "set/", "./set", "set//")} == {"set"}
    assert [Config(dataset=name).dataset for name in ("digits", "./digits")] == ["digits", "./digits"]


def test_paths_may_be_text(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose types nobody checks
    config = Config(out="out", init="net.safetensors", data_dir="data")  # pyrefly: ignore[bad-argument-type]
    assert config == Config(out=Path("out"), init=Path("net.safetensors"), data_dir=Path("data"))


def test_names_that_are_too_long_are_one_line(tmp_path):
    with pytest.raises(OptionError, match=r"^--dataset x+ is neither "):
        Config(dataset="x" * 256)
    with pytest.raises(TrainingError, match=rf"^--out {tmp_path}/x+ cannot be written \(File name too long\): choose"):
        train(Config(dataset="digits", out=tmp_path / ("x" * 256)))


def test_a_warm_up_that_leaves_no_step_is_refused_before_any_work_is_done(small_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.safetensors").write_bytes(b"precious")
    said = r"^--warmup_epochs must leave one of the run's 2 steps for the cosine at least, and 1\.5 epochs take all: "
    with pytest.raises(OptionError, match=said):
        train(Config(dataset="digits", epochs=2, batch_size=16, warmup_epochs=1.5, out=tmp_path / "out", force=True))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["best.safetensors"]


def test_padding_as_wide_as_the_image_is_refused_before_any_work_is_done(small_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
    with pytest.raises(OptionError, match=r"^--crop_padding must be below 8, the images' side, not 8$"):
        train(Config(dataset="digits", batch_size=16, crop_padding=8, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_mirrored_tests_are_for_nets_that_learn_from_mirrored_images():
    with pytest.raises(OptionError, match=r"^--test_flip cannot be used with --dataset digits: "):
        Config(test_flip=True, dataset="digits")
    with pytest.raises(OptionError, match=r"^--test_flip cannot be used with --no_flip: "):
        Config(test_flip=True, no_flip=True)


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_an_averaged_run_from_a_saved_net_reports_both_nets_and_saves_the_averaged_one(tmp_path, capsys):
    architecture = fs.Architecture(
        stage_widths=(8,), stage_blocks=(1,), stem_width=4, stem_stride=4, last_width=16, num_classes=3, dropout=0.1
    )
    fs.save(new_net(architecture), tmp_path / "three.safetensors")
    out = tmp_path / "out"
    train(
        Config(init=tmp_path / "three.safetensors", dataset="digits", epochs=2, batch_size=64, ema=0.99,
               random_erasing=0.2, label_smoothing=0.1, warmup_epochs=0.5, decayed="kernels", out=out)
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "its classifier made anew for 10 classes: the net has 3" in printed
    for part in ("after 0.5 epochs of warm-up", "on kernels alone", "erasing 0.2", "smoothing 0.1", "decay 0.99"):
        assert part in printed

    *_, last = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert last["train_loss"] < np.log(10)
    assert last["raw_test_loss"] != last["test_loss"]
    assert f"(not averaged {last['raw_test_accuracy']:.2%})" in printed
    dataset = data.load("digits", tmp_path)
    expected = expected_by(dataclasses.replace(architecture, num_classes=10), fs.read_metadata(out / "net.safetensors"))
    images = jnp.asarray((dataset.test_images / 255 - np.array(expected.mean)) / expected.std, jnp.float32)
    logits = apply(fs.load(out / "net.safetensors"), images)
    assert abs(np.mean(np.argmax(logits, -1) == dataset.test_labels) - last["test_accuracy"]) <= 1 / 360
