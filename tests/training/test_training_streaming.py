"""Training on images that stay on disk: the same batches, resumed bit for bit, whatever reads them."""

import collections
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import quick_compiling

from flax_shufflenet.datasets import image_folder, streamed
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.system import memory
from flax_shufflenet.system.interruption import Interrupted
from flax_shufflenet.training import pipeline, streaming
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.random_streams import epoch_order
from tests.training.streamed_run import signal_at, train, write_images
from tests.training.test_training_devices import finish, free_port, start
from tests.training.test_training_resume import last_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), side=9)


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory, folder):
    out = tmp_path_factory.mktemp("in_memory")
    train(folder, out, pipeline="device")
    return out


def figures(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if "second" not in name} for record in records[1:]]


def check_same_bits(ours, expected):
    assert figures(ours) == figures(expected)
    jax.tree.map(np.testing.assert_array_equal, last_state(ours, 6), last_state(expected, 6))


@pytest.mark.slow
def test_small_images_train_to_the_same_bits_from_disk_as_from_memory_however_often_interrupted_or_killed(
    tmp_path, folder, in_memory, capsys
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(streaming, "worker_count", lambda: 2)
        signal_at(2, signal.SIGINT, monkeypatch)
        with pytest.raises(Interrupted, match="interrupted after 2 of 6 steps"):
            train(folder, tmp_path, pipeline="stream")
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.streamed_run", folder, tmp_path, "5"],
        cwd=ROOT,
        # Compiles as this process does.
        env=os.environ | {"XLA_FLAGS": quick_compiling.XLA_FLAGS, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "2 of 6 steps are done" in killed.stdout
    readers = json.loads(killed.stdout.splitlines()[-1])
    assert readers
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{reader}").exists() for reader in readers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    train(folder, tmp_path, pipeline="stream")
    said = capsys.readouterr().out
    assert "images  stream: asked for" in said
    assert re.search("[23] of 6 steps are done", said)  # the checkpoint after 3 may not have been whole yet
    check_same_bits(tmp_path, in_memory)


@pytest.mark.slow
def test_random_crops_of_large_images_are_the_same_after_an_interruption(tmp_path):
    folder = write_images(tmp_path / "large", side=90, ending=".jpg")
    train(folder, tmp_path / "undisturbed", pipeline="stream", image_size=72)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(streaming, "worker_count", lambda: 2)
        signal_at(4, signal.SIGINT, monkeypatch)
        with pytest.raises(Interrupted):
            train(folder, tmp_path / "stopped", pipeline="stream", image_size=72)
    train(folder, tmp_path / "stopped", pipeline="stream", image_size=72)
    check_same_bits(tmp_path / "stopped", tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("asked_for", "needed", "machine", "stats", "expected"),
    [
        ("auto", 4e9, 16e9, None, "device: the decoded images take 4 GB, within 25% of this machine's 16 GB"),
        ("auto", 5e9, 16e9, None, "stream: the decoded images take 5 GB, more than 25% of this machine's 16 GB"),
        (
            "auto",
            5e9,
            64e9,
            {"bytes_limit": 16 * 10**9},
            "stream: the decoded images take 5 GB, more than 25% of the device",
        ),
        (
            "auto",
            5e9,
            16e9,
            {"bytes_limit": 80 * 10**9},
            "stream: the decoded images take 5 GB, more than 25% of this machine",
        ),
        ("auto", 5e9, 16e9, {"bytes_in_use": 1}, "stream: the decoded images take 5 GB, more than 25% of this mach"),
        ("device", 5e9, 16e9, None, "device: asked for; the decoded images take 5 GB"),
        ("stream", 5e6, 16e9, None, "stream: asked for; the decoded images take 5 MB"),
    ],
)
def test_auto_takes_the_devices_memory_while_a_quarter_of_it_is_enough(asked_for, needed, machine, stats, expected):
    choice = pipeline.choose(asked_for, int(needed), machine, stats)
    assert f"{choice.name}: {choice.reason}".startswith(expected)


def test_a_folder_that_is_too_large_for_the_memory_is_streamed(folder, monkeypatch):
    config = Config(dataset=str(folder), image_size=8)
    assert pipeline.load(config, 8)[0].pipeline == "device"
    monkeypatch.setattr(memory, "total", lambda: 15_000.0)
    dataset, said = pipeline.load(config, 8)
    assert dataset.pipeline == "stream"
    assert said == "stream: the decoded images take 0.00384 MB, more than 25% of this machine's 0.015 MB"


def test_only_a_folder_is_streamed():
    with pytest.raises(
        OptionError, match=r"^--pipeline stream is for a folder of images; digits is small: leave it out$"
    ):
        Config(dataset="digits", pipeline="stream")


def open_stream(folder, **options):
    return streamed.open_stream(image_folder.find_parts(folder, None), 8, **{"skip_unreadable": False} | options)


def test_a_streamed_folder_says_of_itself_what_one_in_memory_does(folder):
    ours, expected = open_stream(folder), image_folder.load(folder, 8)
    for name in ("name", "source", "class_names", "mean", "std", "flip", "image_size", "short_side"):
        assert getattr(ours, name) == getattr(expected, name)
    np.testing.assert_array_equal(ours.train_labels, expected.train_labels)
    np.testing.assert_array_equal(ours.test_labels, expected.test_labels)
    np.testing.assert_array_equal(np.stack(list(ours.test_images(range(6)))), expected.test_images)
    images = [ours.train_image(row, np.random.default_rng(0)) for row in range(14)]
    np.testing.assert_array_equal(np.stack(images), expected.train_images)


def test_the_same_files_elsewhere_have_the_same_fingerprint_and_changed_ones_another(folder, tmp_path):
    before = open_stream(folder).fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert open_stream(tmp_path / "copy").fingerprint() == before
    with (tmp_path / "copy" / "train" / "dark" / "3.png").open("ab") as file:
        file.write(b"more")
    assert open_stream(tmp_path / "copy").fingerprint() != before


def test_what_cannot_be_read_is_named_before_training_or_left_out_as_from_memory(folder, tmp_path, capfd):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    paths = [damaged / part / "dark" / "1.png" for part in ("train", "test")]
    for path in paths:
        path.write_bytes(b"no image")
    with pytest.raises(TrainingError, match=r"^2 of the images and folders in .* cannot be read: .* --skip_"):
        open_stream(damaged)
    said = capfd.readouterr().err
    assert all(f"{path}: cannot be read as an image" in said for path in paths)
    ours, expected = open_stream(damaged, skip_unreadable=True), image_folder.load(damaged, 8, skip_unreadable=True)
    assert ours.train_labels.tolist() == expected.train_labels.tolist() == [0] * 7 + [1] * 6
    assert ours.test_labels.tolist() == expected.test_labels.tolist() == [0, 0, 0, 1, 1]
    assert (ours.mean, ours.std) == (expected.mean, expected.std)


def test_where_nothing_of_a_class_can_be_read_it_is_named(folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    for path in (damaged / "train" / "dark").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(TrainingError, match=f"^{damaged / 'train' / 'dark'}: no image that can be read to train on$"):
        open_stream(damaged, skip_unreadable=True)
    for path in (damaged / "train" / "bright").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(TrainingError, match="no image that can be read to train on"):
        open_stream(damaged, skip_unreadable=True)


def batches_of(dataset, count):
    stream = streaming.BatchStream(dataset, seed=3, epochs=2, batch_size=4, mesh=None)
    try:
        return [jax.device_get(stream.next_batch()) for _ in range(count)]
    finally:
        stream.close()


def test_an_image_that_is_damaged_while_training_is_named_or_the_next_takes_its_place(folder, tmp_path, capfd):
    copy = shutil.copytree(folder, tmp_path / "copy")
    strict, lenient = open_stream(copy), open_stream(copy, skip_unreadable=True)
    images = image_folder.load(copy, 8).train_images
    order = np.asarray(epoch_order(3, 0, 14))[:8].tolist()
    damaged = order[5]
    path = Path(str(strict.train_files[damaged]))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(TrainingError, match=f"^{path}: cannot be read as an image .*: repair it, or .*--skip_"):
        batches_of(strict, 2)
    found = batches_of(lenient, 2)
    order[5] = (damaged + 1) % 14
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in found]), images[order])
    np.testing.assert_array_equal(np.concatenate([batch[1] for batch in found]), lenient.train_labels[order])
    assert f"{path}: cannot be read as an image" in capfd.readouterr().err


def test_where_a_process_that_reads_images_is_killed_it_is_one_line(folder):
    stream = streaming.BatchStream(open_stream(folder), seed=3, epochs=50, batch_size=4, workers=1)
    stream.next_batch()
    (reader,) = multiprocessing.active_children()
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    said = r"^a process that reads images has ended \(Worker process .* code -9\): where memory"
    with pytest.raises(TrainingError, match=said):
        collections.deque(iter(stream.next_batch, None), maxlen=0)
    stream.close()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "device_count"), [(1, 2), (2, 2)])
def test_devices_and_processes_divide_the_same_batches(folder, tmp_path, processes, device_count):
    address = f"localhost:{free_port()}"
    finish(
        *(
            start(
                "-m",
                "tests.training.streaming_worker",
                folder,
                tmp_path / "batches.npz",
                *((address, processes, number) if processes > 1 else ()),
                device_count=device_count,
            )
            for number in range(processes)
        )
    )
    with np.load(tmp_path / "batches.npz") as found:
        images, labels, shards = found["images"], found["labels"], found["shards"]
    expected = batches_of(open_stream(folder), 6)
    np.testing.assert_array_equal(images, np.stack([batch[0] for batch in expected]))
    np.testing.assert_array_equal(labels, np.stack([batch[1] for batch in expected]))
    assert shards == 4 // (processes * device_count)
