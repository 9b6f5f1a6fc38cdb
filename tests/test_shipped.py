"""The nets that come with the package: found by name, checked, described, and in the wheel."""

import json
import shutil
import tomllib
from importlib import resources
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flax_shufflenet as fs
from benchmarks import model_card, ship
from flax_shufflenet.commands import evaluate, export, predict
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.shipped import nets
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.start import read_init
from tests.command_tools import run_command
from tests.net_tools import apply, new_net

ROOT = Path(__file__).parents[1]
TINY = fs.Architecture(stage_widths=(8,), stage_blocks=(1,), stem_width=4, last_width=16)
NAME = "tiny_0.5_digits"


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write_run(folder: Path, net_size: float = 0.5) -> Path:
    """What a finished run on digits leaves."""
    digits = data.load("digits", folder)
    model = new_net(TINY)
    model.classifier.kernel[...] *= 100
    told = {name: json.dumps(getattr(digits, name)) for name in ("class_names", "mean", "std")}
    told |= {"dataset": "digits", "image_size": "32", "epochs": "1", "test_accuracy": "0.5"}
    folder.mkdir()
    fs.save(model, folder / "net.safetensors", told)
    start = {
        "config": {"net_size": net_size, "dataset": "digits", "seed": 3, "epochs": 1},
        "device": "abacus",
        "versions": {"python": "3.1", "jax": "0.1"},
    }
    epoch = {"epoch": 1, "test_accuracy": 0.5, "seconds": 61.0, "images_per_second": 9.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (start, epoch)))
    return folder


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of shipped nets with one small net, called ``NAME``, and a working folder beside it."""
    folder = tmp_path / "shipped"
    write_run(folder)
    net = folder / "net.safetensors"
    entry = nets.ShippedNet(net.name, nets.sha256(net), "card.md", "results/some")
    (folder / nets.REGISTRY_FILE).write_text(json.dumps({NAME: entry._asdict()}))
    monkeypatch.setattr(nets, "FOLDER", folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.mark.parametrize("name", nets.registry())
def test_every_net_that_is_shipped_is_whole_and_described(name):
    shipped = nets.registry()[name]
    model = fs.pretrained(name)
    metadata = fs.read_metadata(nets.FOLDER / shipped.file)
    assert model.architecture.num_classes == len(json.loads(metadata["class_names"]))
    text = (nets.FOLDER / shipped.card).read_text()
    assert text == model_card.card(name, nets.FOLDER / shipped.file, ROOT / shipped.log)
    assert shipped.sha256 in text


def test_the_wheel_has_all_that_the_registry_names():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        file.name
        for pattern in patterns["flax_shufflenet.shipped"]
        for file in resources.files("flax_shufflenet.shipped").iterdir()
        if Path(file.name).match(pattern)
    }
    named = {name for entry in nets.registry().values() for name in (entry.file, entry.card)}
    assert packaged == named | {nets.REGISTRY_FILE}


def test_an_unknown_name_lists_those_that_there_are(shelf, capsys):
    with pytest.raises(ValueError, match=f"^no net 'resnet' comes with flax_shufflenet, only {NAME}$"):
        fs.pretrained("resnet")
    for command, *more in ((predict, "image.png"), (evaluate,), (export,)):
        code, out, err = run_command(capsys, command, "resnet", *more)
        name = command.__name__.rpartition(".")[2]
        said = f"{name}: resnet: no such file; the package's own nets: {NAME}"
        assert (code, out, err) == (1, "", [said])
    code, _, err = run_command(capsys, export, "resnet.safetensors")
    assert err == ["export: resnet.safetensors: no such file"]
    with pytest.raises(TrainingError, match=f"^--init resnet: no such file; the package's own nets: {NAME}$"):
        read_init(Config(init=Path("resnet"), dataset="digits"))


def test_a_file_that_was_altered_or_lost_is_refused_in_one_line(shelf, capsys):
    file = shelf / "net.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1  # one bit of a weight
    file.write_bytes(whole)
    said = f"{file}: not the file that was shipped, whose SHA-256 is [0-9a-f]{{64}}, not [0-9a-f]{{64}}; install "
    with pytest.raises(ValueError, match=said):
        fs.pretrained(NAME)
    code, out, err = run_command(capsys, export, NAME)
    assert (code, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"export: {file}: not the file that was shipped")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.safetensors: no such file; install flax_shufflenet again$"):
        fs.pretrained(NAME)


def test_commands_take_the_name_where_they_take_a_file(shelf, capsys):
    images = data.load("digits", shelf).test_images
    Image.fromarray(images[0]).save("image.png")
    code, out, err = run_command(capsys, predict, NAME, "image.png")
    assert (code, err, len(out.splitlines())) == (0, [], 1)
    code, out, err = run_command(capsys, evaluate, NAME, "--json")
    assert (code, err, json.loads(out)["net"]) == (0, [], NAME)
    code, out, err = run_command(capsys, export, NAME, "--platforms", "cpu")
    assert (code, err) == (0, [])
    assert Path(f"{NAME}.exported.zip").is_file()  # not in the package
    saved = read_init(Config(init=Path(NAME), dataset="digits"))
    assert saved is not None
    assert (saved.path, saved.model.architecture) == (Path(NAME), TINY)
    half = fs.pretrained(NAME, dtype=jnp.bfloat16)
    assert apply(half, jnp.zeros((1, 32, 32, 3))).dtype == jnp.bfloat16


def test_a_file_of_that_name_comes_first(shelf):
    assert nets.find(Path(NAME)) == shelf / "net.safetensors"
    other = new_net(TINY, seed=1)
    fs.save(other, NAME)
    assert nets.find(Path(NAME)) == Path(NAME)
    saved = read_init(Config(init=Path(NAME), dataset="digits"))
    assert saved is not None
    np.testing.assert_array_equal(saved.model.classifier.kernel[...], other.classifier.kernel[...])


def test_a_run_is_shipped_by_one_command(shelf, tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "long_run", net_size=1.5)
    (tmp_path / "results").mkdir()
    for module in ("benchmarks.ship", "benchmarks.tables.markdown"):
        monkeypatch.setattr(f"{module}.ROOT", tmp_path)

    def run_ship() -> tuple[int, list[str]]:
        monkeypatch.setattr("sys.argv", ["ship", str(run), "--data_dir", str(tmp_path)])
        code = ship.main()
        captured = capsys.readouterr()
        return code, (captured.out + captured.err).splitlines()

    assert run_ship() == (
        1,
        [f"ship: {run} is a run on digits: benchmarks/model_card.py describes cifar10 alone"],
    )
    monkeypatch.setitem(model_card.DATA, "digits", "Scanned digits.")
    assert run_ship() == (0, [f"shipped shufflenet_1.5_digits; its card is {shelf / 'shufflenet_1.5_digits.md'}"])
    assert list(nets.registry()) == ["shufflenet_1.5_digits", NAME]
    assert fs.pretrained("shufflenet_1.5_digits").architecture == TINY
    text = (shelf / "shufflenet_1.5_digits.md").read_text()
    assert "python train.py --net_size 1.5 --epochs 1 --dataset digits" in text
    assert "Scanned digits." in text
    assert "not mirrored left to right: a mirrored digit is no digit" in text
    assert (tmp_path / "results" / "long_run" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()

    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("61.0", "62.0"))
    code, lines = run_ship()
    assert (code, len(lines)) == (1, 1)
    assert "is the log of another run" in lines[0]
    shutil.copy(nets.FOLDER / "net.safetensors", run)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("0.5,", "0.6,"))
    assert run_ship()[1][0].startswith(f"ship: {run / 'net.safetensors'} is not the net of the last epoch in ")
