"""The same training in PyTorch and with stock Flax layers: the same losses, the same files, no run repeated."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flax_shufflenet as fs
from benchmarks import seeds, stock_train, torch_train
from benchmarks.same_losses import losses
from benchmarks.tables import runs
from flax_shufflenet.commands import compare
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.runs.run import read_run
from flax_shufflenet.system import allocator
from flax_shufflenet.training import loop, start, totals
from flax_shufflenet.training.config import Config
from tests.net_tools import new_net

ROOT = Path(__file__).parents[2]
TINY = fs.Architecture(
    stage_widths=(4, 8, 8), stage_blocks=(1, 1, 1), stem_width=4, last_width=8, num_classes=3, down_relu=False
)


def test_the_losses_of_ten_steps_are_those_of_pytorch(small_dataset):
    """Five epochs of two batches: order, augmentation, decay, momentum and cosine are in it."""
    config = Config(net_size=0.5, dataset="digits", epochs=5, batch_size=8, learning_rate=0.05, seed=3)
    found = np.array(list(losses(config, TINY, small_dataset, total_steps=10, dtype="float64")))
    ours, theirs, moved = found.T
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)
    assert np.ptp(ours) > 0.01  # it learns
    assert (moved != theirs).any()


@pytest.mark.slow
def test_an_epoch_in_pytorch_writes_what_compare_reads(tmp_path, cache_home):
    folder, out = tmp_path / "noise", tmp_path / "out"
    for number, pixels in enumerate(np.random.default_rng(0).integers(256, size=(60, 32, 32, 3), dtype=np.uint8)):
        path = folder / ("train" if number < 48 else "test") / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    command = ["-m", "benchmarks.torch_train", "--net_size", "0.5", "--dataset", str(folder), "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--batch_size", "16", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    run = read_run(out)
    assert run.description["framework"] == "PyTorch"
    assert run.last is not None
    assert run.last["step"] == 48 // 16
    assert compare.cells({"out": run})[1][1] == "1/1"
    net = torch.load(out / "net.pt", weights_only=True)
    assert int(net["bn1.num_batches_tracked"]) == 48 // 16


@pytest.mark.usefixtures("without_report")
def test_stock_layers_train_alike(tmp_path, small_dataset, float64, monkeypatch, capsys):
    """The whole command, in this process: from the same weights it ends each epoch with the loss of train.py's net."""
    architecture = dataclasses.replace(
        fs.seed(0.5, 3), stage_widths=(4,), stage_blocks=(2,), stem_width=4, last_width=8
    )

    def initial(*_):
        return new_net(architecture, dtype="float64"), "tiny"

    monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
    monkeypatch.setattr(start, "initial_model", initial)
    monkeypatch.setattr(loop, "initial_model", initial)
    monkeypatch.setattr(allocator, "restart_with_fast_malloc", lambda: None)  # this process has to go on
    options: dict[str, Any] = {
        "net_size": 0.5,
        "dataset": "digits",
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.05,
    }
    assert stock_train.train(stock_train.Options(out=tmp_path / "stock", **options)) == 0
    loop.train(Config(out=tmp_path / "ours", **options))
    stock, ours = (read_run(tmp_path / name) for name in ("stock", "ours"))
    assert stock.description["framework"] == "stock Flax"
    assert len(stock.epochs) == 3
    # Tests would differ: stock layers keep the variance of the batch itself, and PyTorch and train.py an unbiased one.
    for key in ("train_loss", "train_accuracy", "learning_rate"):
        np.testing.assert_allclose(stock.series(key)[1], ours.series(key)[1], rtol=0, atol=1e-8)
    assert np.ptp(stock.series("train_loss")[1]) > 0.01  # it learns
    with pytest.raises(TrainingError, match=r"net\.npz exists: choose another --out, or replace it with --force"):
        stock_train.train(stock_train.Options(out=tmp_path / "stock", **options))
    # A run that does not end leaves no net of the one that it replaces.
    with pytest.raises(FloatingPointError):
        stock_train.train(stock_train.Options(out=tmp_path / "stock", force=True, **options | {"learning_rate": 1e300}))
    assert not (tmp_path / "stock" / "net.npz").exists()


@pytest.mark.parametrize("program", [torch_train, stock_train])
def test_an_interrupted_run_is_gone_on_with_bit_for_bit(program, tmp_path, small_dataset, monkeypatch, capsys):
    architecture = dataclasses.replace(fs.seed(0.5, 3), stage_widths=(4, 8, 8), stage_blocks=(1, 1, 1))
    monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
    monkeypatch.setattr(start, "initial_model", lambda *_: (new_net(architecture), "tiny"))
    monkeypatch.setattr(allocator, "restart_with_fast_malloc", lambda: None)  # this process has to go on
    options: dict[str, Any] = {"net_size": 0.5, "dataset": "digits", "epochs": 3, "batch_size": 8}
    assert program.train(program.Options(out=tmp_path / "whole", **options)) == 0

    add = totals.EpochTotals.add

    def interrupt(self, number, metrics):
        if number == 6:  # the last of the third epoch
            raise KeyboardInterrupt
        add(self, number, metrics)

    monkeypatch.setattr(totals.EpochTotals, "add", interrupt)
    stopped = program.Options(out=tmp_path / "stopped", **options)
    with pytest.raises(KeyboardInterrupt):
        program.train(stopped)
    monkeypatch.setattr(totals.EpochTotals, "add", add)
    other = dataclasses.replace(stopped, seed=1)
    with pytest.raises(TrainingError, match="was started with other options: choose another --out, or start anew"):
        program.train(other)
    capsys.readouterr()
    assert program.train(stopped) == 0
    assert f"resume  {tmp_path / 'stopped' / 'epoch_2.state'}" in capsys.readouterr().out
    assert sorted(path.name for path in stopped.out.iterdir()) == ["metrics.jsonl", program.NET_FILE]
    assert (stopped.out / program.NET_FILE).read_bytes() == (tmp_path / "whole" / program.NET_FILE).read_bytes()
    whole, resumed = (read_run(tmp_path / name) for name in ("whole", "stopped"))
    assert [record["step"] for record in resumed.epochs] == [2, 4, 6]
    for key in ("train_loss", "test_loss", "test_accuracy"):
        assert resumed.series(key) == whole.series(key)


@pytest.mark.parametrize("command", ["torch_train", "stock_train"])
def test_a_wrong_option_is_one_line(command):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command}", "--epochs", "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == f"{command}: --epochs must be at least 1, not 0 (see --help)\n"


def write_finished(out, framework, seed, accuracy):
    folder = seeds.folder_of(out, framework, seed)
    folder.mkdir(parents=True)
    config = {"epochs": 1, "dataset": "digits", "seed": seed}
    epoch = {"epoch": 1, "test_accuracy": accuracy, "seconds": 60.0, "images_per_second": 100.0}
    lines = [json.dumps({"config": config, "framework": framework}), json.dumps(epoch)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / ("net.safetensors" if framework == "JAX" else "net.pt")).touch()


def test_finished_runs_are_not_repeated_and_mean_and_spread_are_theirs(tmp_path, monkeypatch, capsys):
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        write_finished(tmp_path, "JAX", seed, accuracy)
        write_finished(tmp_path, "PyTorch", seed, 0.5)
    monkeypatch.setattr(sys, "argv", ["seeds", "--out", str(tmp_path)])
    assert seeds.main() == 0
    printed = capsys.readouterr().out
    assert "JAX        test accuracy 60.00 %, standard deviation 10.00 %, 50.00 % to 70.00 % (3 seeds)" in printed
    assert "PyTorch    test accuracy 50.00 %, standard deviation 0.00 %" in printed
    # The mean's deviation is 0.1 / sqrt(3), and 4.303 is Student's t for two degrees of freedom.
    assert "JAX less PyTorch: +10.00 points, 95 % confidence interval -14.84 to +34.84" in printed
    assert "pytorch_seed2" in printed


def test_the_time_to_an_accuracy_is_that_of_the_first_epoch_that_reaches_it(tmp_path):
    for framework, seconds in (("JAX", 10.0), ("PyTorch", 25.0)):
        for seed, reached in ((0, 2), (1, 4)):
            folder = tmp_path / f"{framework}{seed}"
            folder.mkdir()
            config = {"epochs": 5, "dataset": "digits", "seed": seed}
            said = {"config": config, "framework": framework, "test_images": 100, "device": "cpu", "versions": {}}
            epochs = [
                {"epoch": epoch, "test_accuracy": 0.96 if epoch >= reached else 0.5}
                | {"seconds": seconds, "images_per_second": 1.0}
                for epoch in range(1, 6)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [said, *epochs]))
    table = runs.time_to_accuracy(*sorted(tmp_path.iterdir()))
    assert table[2:4] == [
        "| JAX | 2 | 10.0 s | 30 s (1.0) | 30 s (1.0) | |",
        "| PyTorch | 2 | 25.0 s | 75 s (2.5) | 75 s (2.5) | |",
    ]


def test_one_seed_has_a_difference_without_an_interval():
    assert seeds.describe_differences({"JAX": [0.5], "PyTorch": [0.75]}) == ["JAX less PyTorch: -25.00 points"]
