"""Commands where there is no device, no home and no cache folder to be had, and what is kept where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import flax_shufflenet as fs
from flax_shufflenet.system import user_cache
from tests.checkpoint_tools import small_state_dict
from tests.net_tools import new_net

ROOT = Path(__file__).parents[2]
TINY = fs.Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=10)


def run(*arguments, **environment):
    unset = {name for name, value in environment.items() if value is None}
    given = {name: value for name, value in (os.environ | environment).items() if name not in unset}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=given, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def folder(tmp_path):
    fs.save(new_net(TINY), tmp_path / "net.safetensors")
    torch.save(small_state_dict("seed"), tmp_path / "seed.pt")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "platform"),
    [
        (["train.py", "--dataset", "digits", "--out", "OUT"], "nonsense"),
        (["-m", "convert", "seed.pt"], "cuda"),
        (["-m", "flax_shufflenet", "predict", "net.safetensors", "image.png"], "nonsense"),
        (["-m", "flax_shufflenet", "evaluate", "net.safetensors", "--dataset", "digits"], "cuda"),
        (["-m", "flax_shufflenet", "export", "net.safetensors"], "nonsense"),
    ],
)
def test_a_platform_that_is_not_here_is_named(folder, command, platform):
    if platform == "cuda" and any(Path("/dev").glob("nvidia*")):
        pytest.skip("it may be here")
    before = {path.name for path in folder.iterdir()}
    command = [folder / word if word == "OUT" or (folder / word).exists() else word for word in command]
    result = run(*command, JAX_PLATFORMS=platform)
    assert result.returncode == 2
    said = f": JAX_PLATFORMS={platform}: JAX finds no such device here; unset it to use what there is (see --help)\n"
    assert result.stderr.endswith(said)
    assert result.stderr.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("homeless", [{"HOME": "FILE/home"}, {"HOME": "/", "XDG_CACHE_HOME": "FILE/cache"}])
def test_without_a_cache_folder_commands_only_take_longer(folder, homeless):
    environment = {"XDG_CACHE_HOME": None, "JAX_COMPILATION_CACHE_DIR": None}
    environment |= {name: value.replace("FILE", str(folder / "seed.pt")) for name, value in homeless.items()}
    predict = ("-m", "flax_shufflenet", "predict", folder / "net.safetensors", folder / "image.png")
    result = run(*predict, **environment)
    assert result.returncode == 0
    assert all(line.startswith("assumed ") for line in result.stderr.splitlines())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become nobody in particular")
def test_a_user_without_a_name_and_a_home_has_no_cache():
    script = "import os; from flax_shufflenet.datasets import catalogue\n"
    script += "from flax_shufflenet.system import user_cache; os.setuid(54321)\n"
    script += "print(user_cache.folder(), catalogue.default_data_dir())"
    result = run("-c", script, HOME=None, XDG_CACHE_HOME=None, TFDS_DATA_DIR=None)
    assert result.stdout == "None tensorflow_datasets\n", result.stderr


def test_the_cache_folder_is_made(cache_home):
    made = cache_home / "flax_shufflenet"
    assert user_cache.folder() == made
    assert made.is_dir()


def test_the_longest_unused_are_removed_first(cache_home):
    kept = user_cache.folder()
    assert kept is not None
    (kept / "compiled").mkdir()
    for age, name in enumerate(["images.npz", "compiled/new", "compiled/old", "older.npz"]):
        (kept / name).write_bytes(bytes(100))
        used = 1e9 - 1000 * age
        os.utime(kept / name, (used, used))
    os.utime(kept / "older.npz", (1e9 + 5000, 1e9 - 5000))  # an old file that was read since
    user_cache.prune(400)
    assert len([path for path in kept.rglob("*") if path.is_file()]) == 4
    user_cache.prune(250)
    assert sorted(path.name for path in kept.rglob("*") if path.is_file()) == ["images.npz", "older.npz"]


def test_commands_keep_the_cache_small(folder, cache_home):
    """A file without content, which takes no room, but has more bytes than are kept."""
    old = cache_home / "flax_shufflenet" / "compiled" / "old"
    old.parent.mkdir(parents=True)
    with old.open("wb") as file:
        file.truncate(2_100_000_000)
    result = run(
        "-m",
        "flax_shufflenet",
        "predict",
        folder / "net.safetensors",
        folder / "image.png",
        JAX_COMPILATION_CACHE_DIR=None,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    assert result.returncode == 0, result.stderr
    assert not old.exists()
    assert any(old.parent.iterdir())
