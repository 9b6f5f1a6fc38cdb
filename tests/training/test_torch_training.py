"""The same training in PyTorch: the same losses, the same files, and runs that are not repeated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flax_shufflenet as fs
from benchmarks import seeds
from benchmarks.same_losses import losses
from flax_shufflenet.commands import compare
from flax_shufflenet.runs.run import read_run
from flax_shufflenet.training.config import Config

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


def test_a_wrong_option_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torch_train", "--epochs", "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "torch_train: --epochs must be at least 1, not 0 (see --help)\n"


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
    assert "JAX      test accuracy 60.00 %, standard deviation 10.00 %, 50.00 % to 70.00 % (3 seeds)" in printed
    assert "PyTorch  test accuracy 50.00 %, standard deviation 0.00 %" in printed
    # The mean's deviation is 0.1 / sqrt(3), and 4.303 is Student's t for two degrees of freedom.
    assert "JAX less PyTorch: +10.00 points, 95 % confidence interval -14.84 to +34.84" in printed
    assert "pytorch_seed2" in printed


def test_one_seed_has_a_difference_without_an_interval():
    assert seeds.describe_difference({"JAX": [0.5], "PyTorch": [0.75]}) == "JAX less PyTorch: -25.00 points"
