"""Commands whose standard output or error is closed, is read by nobody, or cannot show every character."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flax import nnx
from PIL import Image

import flax_shufflenet as fs
from tests.checkpoint_tools import small_state_dict

ROOT = Path(__file__).parents[1]
TINY = fs.Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)
NAMES = '["größte", "小", "✓"]'


def run(*arguments, redirected="", **environment):
    """The exit code and the standard error of ``python ARGUMENTS``, with the shell's redirections."""
    script = f'exec "$0" "$@" {redirected}'
    result = subprocess.run(
        ["bash", "-c", script, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return result.returncode, result.stderr


# `true` has ended before a command has imported anything.
NOBODY = {"closed": ">&-", "all closed": ">&- 2>&- <&-", "pipe without reader": "> >(exec true)"}


@pytest.fixture
def folder(tmp_path):
    """With a net, a PyTorch checkpoint and an image."""
    fs.save(fs.ShuffleNetV2(TINY, rngs=nnx.Rngs(0)), tmp_path / "net.safetensors", {"class_names": NAMES})
    torch.save(small_state_dict("seed", stage_blocks=(0, 0, 0)), tmp_path / "seed.pt")
    (tmp_path / "images").mkdir()
    for number in range(300):  # more than a pipe's buffer holds of lines
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{'bärchen' * 20}_{number}.png")
    return tmp_path


@pytest.mark.parametrize("where", NOBODY)
@pytest.mark.parametrize(
    "command", [["train.py"], *(["-m", "flax_shufflenet", name] for name in ("compare", "evaluate"))]
)
def test_help_that_nobody_reads(command, where):
    assert run(*command, "--help", redirected=NOBODY[where]) == (0, "")


@pytest.mark.slow
def test_a_long_output_that_nobody_reads(folder):
    predict = ("-m", "flax_shufflenet", "predict", folder / "net.safetensors", folder / "images")
    assert run(*predict, redirected=NOBODY["pipe without reader"])[0] == 0


@pytest.mark.slow
def test_what_a_command_writes_is_there_where_nothing_can_be_said(folder):
    options = {"redirected": NOBODY["all closed"]}
    exported = ("-m", "flax_shufflenet", "export", folder / "net.safetensors", "--platforms", "cpu")
    assert run(*exported, **options)[0] == 0
    assert (folder / "net.exported.zip").exists()
    assert run("-m", "convert", folder / "seed.pt", **options) == (0, "")
    assert (folder / "seed.safetensors").exists()


@pytest.mark.slow
def test_where_the_output_cannot_be_written_nothing_else_is(folder):
    said = "[Errno 28] No space left on device: 'standard output'\n"
    options = {"redirected": ">/dev/full"}
    assert run("-m", "convert", folder / "seed.pt", **options) == (1, f"convert: {said}")
    exported = ("-m", "flax_shufflenet", "export", folder / "net.safetensors", "--platforms", "cpu")
    code, stderr = run(*exported, **options)
    assert (code, stderr.splitlines(keepends=True)[-1]) == (1, f"export: {said}")
    assert sorted(path.name for path in folder.iterdir()) == ["images", "net.safetensors", "seed.pt"]


def test_characters_that_the_output_lacks_are_written_as_escapes(folder):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    image = folder / "images" / f"{'bärchen' * 20}_0.png"
    (folder / "grün.png").write_text("no image")
    command = ("-m", "flax_shufflenet", "predict", folder / "net.safetensors", image, folder / "grün.png")
    code, stderr = run(*command, redirected=f">'{folder}/predictions'", **ascii_only)
    assert code == 1
    assert "cannot identify image file" in stderr
    assert "codec" not in stderr
    (line,) = (folder / "predictions").read_text("ascii").splitlines()
    assert "b\\xe4rchen_0.png" in line
    assert "gr\\xf6\\xdfte\t" in line
    code, stderr = run("train.py", "--dataset", folder / "grün", **ascii_only)
    assert code == 2
    assert stderr.endswith("n is neither cifar10, cifar100, digits, imagenet2012 nor a folder (see --help)\n")
