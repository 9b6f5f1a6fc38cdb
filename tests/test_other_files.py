"""What is no net's file: each command says in one line what it is, and what helps."""

import io
import shlex
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoint_tools import all_formats, small_state_dict, write
from command_tools import run_command
from convert_tools import run_convert
from PIL import Image

from flax_shufflenet import load
from flax_shufflenet.commands import evaluate, export, predict
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.start import read_init


def said_by_all(capsys, path: Path) -> str:
    """What predict, evaluate, export and train.py --init say of a file given as the net; it is the same."""
    said = set()
    for module, arguments in ((predict, ["image.png"]), (evaluate, ["--data_dir", "."]), (export, [])):
        code, out, err = run_command(capsys, module, path, *arguments)
        assert (code, out, len(err)) == (1, "", 1)
        said.add(err[0].partition(": ")[2])
    with pytest.raises(TrainingError) as refused:
        read_init(Config(init=path))
    said.add(str(refused.value).removeprefix("--init "))
    (one,) = said
    return one


@pytest.mark.parametrize("form", ["zip", "legacy", "torchscript", "pt2", "safetensors"])
def test_pytorch_files_are_named_with_the_command_that_converts_them(form, tmp_path, capsys):
    folder = tmp_path / "my nets"
    folder.mkdir()
    path = folder / ("net.safetensors" if form == "safetensors" else "net.pt")
    path.write_bytes(all_formats("seed")[form])
    output = folder / ("net.flax.safetensors" if form == "safetensors" else "net.safetensors")
    said = said_by_all(capsys, path)
    advice = f"python -m convert '{path}' -o '{output}'"
    assert said.startswith(f"{path}: a {'safetensors' if form == 'safetensors' else 'PyTorch'} file")
    assert said.endswith(f"{advice} makes a net of the ShuffleNetV2 in it")
    if form == "legacy":  # as it is said
        assert run_convert(capsys, *shlex.split(advice)[3:]).code == 0
        assert load(output).architecture.num_classes == 10


def test_a_pytorch_file_with_the_ending_of_a_net(tmp_path, capsys):
    path = write(tmp_path / "net.safetensors", small_state_dict("seed"))
    assert f"-o {tmp_path / 'net.flax.safetensors'} makes" in said_by_all(capsys, path)


def tensorflow_lite() -> bytes:
    return struct.pack("<I", 28) + b"TFL3" + bytes(64)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("net.pt"))
    return buffer.getvalue()


def onnx_model() -> bytes:
    graph = onnx.helper.make_graph([], "net", [], [])
    return onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString()


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        (
            "net.onnx",
            onnx_model,
            "an ONNX model, it seems, which is not read here; convert the PyTorch net that it was",
        ),
        ("net.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file, as Keras writes; no net is read from it"),
        (
            "saved_model.pb",
            lambda: b"\x08\x01\x12\xd3\x05" + bytes(64),
            "a TensorFlow file; no net is read from it here",
        ),
        ("frozen.pb", lambda: b"\x0a\x2f\x0a" + bytes(64), "a TensorFlow file; no net is read from it here"),
        ("net.tflite", tensorflow_lite, "a TensorFlow file; no net is read from it here"),
        ("net.ckpt.data-00000-of-00001", lambda: bytes(64), "a TensorFlow file; no net is read from it here"),
        ("net.ckpt.index", lambda: bytes(64) + bytes.fromhex("57fb808b247547db"), "a TensorFlow file; no net is read"),
        ("net.pth.tar", tar, "a tar archive; unpack it first, and name the file in it"),
        (
            "net.pt",
            lambda: b"Entry not found\n",
            "a text file, which begins 'Entry not found'; perhaps a download that",
        ),
        ("long.pt", lambda: "é".encode() * 4000, f"a text file, which begins '{'é' * 60}'; perhaps a download that"),
        ("page.pt", lambda: b"<!DOCTYPE html>", "a web page or XML, perhaps a download that went wrong"),
    ],
)
def test_files_of_other_programs(name, make, reason, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(make())
    assert said_by_all(capsys, path).startswith(f"{path}: {reason}")
    outcome = run_convert(capsys, path)
    assert outcome.code == 1
    assert outcome.err.startswith(f"convert: {path}: {reason}")


def test_images_and_other_archives_given_for_a_net(tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    for name, said in (
        ("a.png", "an image, not a net"),
        ("a.jpg", "an image, not a net"),
        ("a.zip", "a zip archive, not a"),
    ):
        assert said_by_all(capsys, tmp_path / name).startswith(f"{tmp_path / name}: {said}")


def missing(capsys, path: str | Path) -> str:
    """What convert says, which the other commands do too."""
    outcome = run_convert(capsys, path)
    assert (outcome.code, outcome.out) == (1, "")
    said = outcome.err.removeprefix("convert: ").strip()
    assert said_by_all(capsys, Path(path)) == said
    return said


@pytest.mark.parametrize("address", ["https://example.org/nets/net.pth", "http://a.b/c?d=e", "s3://bucket/net.pt"])
def test_web_addresses(address, capsys):
    assert missing(capsys, address) == f"{address}: a web address; download the file first, and name that"


@pytest.mark.parametrize(
    ("asked", "there", "found"),
    [
        ("net.pt", ["net.pth"], "net.pth"),
        ("shufflenet_best.pt", ["shuflenet_best.pt", "notes.txt"], "shuflenet_best.pt"),
        ("Net.pt", ["net.pt"], "net.pt"),
        ("ckpt.pt", ["ckpt.safetensors"], "ckpt.safetensors"),
        ("epoch_5.pt", ["epoch_1.pt", "epoch_2.pt"], None),
        ("net.pt", ["something.txt"], None),
        ("net.pt", [], None),
    ],
)
def test_a_missing_file_and_the_one_of_a_close_name(asked, there, found, tmp_path, capsys):
    for name in there:
        (tmp_path / name).touch()
    (tmp_path / "net").mkdir()
    close = f"; there is {tmp_path / found}" if found else ""
    assert missing(capsys, tmp_path / asked) == f"{tmp_path / asked}: no such file{close}"


def test_a_missing_folder_and_a_link_to_nothing(tmp_path, capsys):
    path = tmp_path / "nets" / "net.pt"
    assert missing(capsys, path) == f"{path}: no such file; there is no folder {tmp_path / 'nets'}"
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    assert missing(capsys, tmp_path / "link.pt").endswith(f"a link to {tmp_path / 'gone.pt'}, where there is no file")
    assert said_by_all(capsys, tmp_path) == f"{tmp_path}: a folder; name the net's file in it"
