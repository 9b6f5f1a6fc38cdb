"""``python train.py`` as its users run it: a process of its own."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import flax_shufflenet as fs
from flax_shufflenet.commands.train import parse
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import OptionError
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.recipe import RECIPES
from tests.net_tools import apply

TRAIN = Path(__file__).parents[2] / "train.py"


def train(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(TRAIN), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def one_line_of(result):
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_terminated_epoch_on_digits_goes_on_and_saves_a_net_with_the_reported_accuracy(
    tmp_path, cache_home, monkeypatch
):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")  # the user's cache folder is used where none is named
    out = tmp_path / "out"
    command = ("--dataset", "digits", "--net_size", "0.5", "--epochs", 1, "--batch-size", 64, "--out", out)
    stopped = started(*command)
    assert stopped.stdout is not None
    stopped.stdout.close()  # as behind head: nobody reads along
    while not (out / "metrics.jsonl").exists() and stopped.poll() is None:
        time.sleep(0.01)
    stopped.terminate()
    _, stderr = stopped.communicate(timeout=600)
    assert stopped.returncode == 143
    said = re.fullmatch(r"train.py: interrupted after (\d+) of 22 steps, which are saved in .*\n", stderr)
    assert said, stderr
    step = int(said[1])

    result = train(*command)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "digits from scikit-learn" in result.stdout
    assert f"resume  {out / 'checkpoints' / str(step)}, {step} of 22 steps are done" in result.stdout
    assert any((cache_home / "flax_shufflenet" / "compiled").iterdir())

    start, epoch = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert start["config"]["batch_size"] == 64
    assert set(start["versions"]) >= {"jax", "flax", "optax"}
    assert epoch["epoch"] == 1
    assert epoch["step"] == 1437 // 64
    assert 0 <= epoch["learning_rate"] < 0.1
    assert np.isfinite([epoch[key] for key in ("train_loss", "test_loss", "images_per_second", "seconds")]).all()

    metadata = fs.read_metadata(out / "net.safetensors")
    assert float(metadata["test_accuracy"]) == epoch["test_accuracy"]
    assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]
    dataset = data.load(metadata["dataset"], tmp_path)
    mean, std = (np.array(json.loads(metadata[name])) for name in ("mean", "std"))
    images = jnp.asarray((dataset.test_images / 255 - mean) / std, jnp.float32)
    logits = apply(fs.load(out / "net.safetensors"), images)
    accuracy = np.mean(np.argmax(logits, -1) == dataset.test_labels)
    assert abs(accuracy - epoch["test_accuracy"]) <= 1 / 360  # rounding may tip one image

    page = (out / "report.md").read_text()
    assert f"**{100 * epoch['test_accuracy']:.2f} %**" in page
    assert (out / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--net_size", "3"], "--net_size must be one of 0.5, 1.0, 1.5, 2.0"),
        (["--batch_size", "2000", "--dataset", "digits"], "--batch_size must be at most 1437"),
        (["--no_such_option"], "--no_such_option"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(tmp_path, arguments, said):
    result = train(*arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert said in one_line_of(result)
    assert not (tmp_path / "out").exists()


def test_a_recipe_sets_defaults_and_options_come_first():
    assert parse([]) == parse(["--recipe", "published"]) == Config()
    fast = RECIPES["fast"]
    assert parse(["--recipe", "fast"]) == Config(**fast) != Config()
    assert parse(["--recipe", "imagenet"]) == Config(**RECIPES["imagenet"])
    assert parse(["--batch-size", "32", "--recipe=fast"]) == dataclasses.replace(Config(**fast), batch_size=32)
    with pytest.raises(OptionError, match="invalid choice 'slow'"):
        parse(["--recipe", "slow"])


def test_help_names_every_option():
    result = train("--help")
    assert result.returncode == 0
    for option in ("recipe", *(field.name for field in dataclasses.fields(Config))):
        assert re.search(rf"--{option}\b", result.stdout)


def test_without_data_and_network_one_line_says_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []

        def hang_up():
            with contextlib.suppress(OSError):  # until the server is closed
                while True:
                    connection, _ = server.accept()
                    asked.append(connection)
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY"), proxy)
        environment = proxies | {"NO_PROXY": "", "no_proxy": ""}
        result = train("--data_dir", tmp_path / "empty", "--out", tmp_path / "out", **environment)
        server.shutdown(socket.SHUT_RDWR)
    assert result.returncode == 1
    assert len(asked) == 1  # it does not try again and again
    line = one_line_of(result)
    assert "cifar-10-binary.tar.gz" in line
    assert str(tmp_path / "empty") in line
    assert "--dataset digits" in line


def test_a_truncated_archive_is_one_line(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b too short")
    result = train("--data_dir", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "cifar-10-binary.tar.gz is damaged or incomplete" in one_line_of(result)


def test_an_interrupt_is_one_line(tmp_path):
    process = started("--dataset", "digits", "--net_size", "0.5", "--out", tmp_path / "out")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("data")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert stderr == "train.py: interrupted, nothing new to save\n"
