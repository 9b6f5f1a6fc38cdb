"""A converted net that goes on learning: it gets its images as its authors' code gives them, and learns."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flax_shufflenet as fs
from benchmarks.fine_tuning import write_folder
from convert.layouts import LAYOUTS
from convert.pipeline import as_source, convert_source
from flax_shufflenet.commands.evaluate import Options, evaluate
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.loop import train
from flax_shufflenet.training.start import read_init
from flax_shufflenet.weights import to_bytes
from tests.net_tools import new_net

pytestmark = pytest.mark.usefixtures("without_report")


@pytest.fixture
def coloured(tmp_path) -> Path:
    """Reddish and bluish noise: classes that only the order of the channels tells apart."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (16, 20, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "set"


@pytest.mark.slow
def test_a_net_of_raw_blue_first_images_gets_them_in_training_and_says_so_afterwards(tmp_path, coloured, capsys):
    narrow = {"stage_widths": (8, 12, 16), "stage_blocks": (0, 0, 0), "stem_width": 4, "last_width": 8}
    architecture = dataclasses.replace(fs.preset("megvii", 0.5, 5), **narrow)
    # As convert writes it.
    fs.save(new_net(architecture), tmp_path / "megvii.safetensors", {"layout": "megvii"})
    out = tmp_path / "out"
    train(Config(init=tmp_path / "megvii.safetensors", dataset=str(coloured), epochs=2, batch_size=8, out=out))
    printed = capsys.readouterr().out
    assert "6 test images of 224x224" in printed
    assert "input   blue, green, red, values from 0 to 255 (assumed, " in printed
    metadata = fs.read_metadata(out / "net.safetensors")
    assert (metadata["channel_order"], json.loads(metadata["std"])) == ('"bgr"', [1 / 255] * 3)

    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    evaluate(Options(net=out / "net.safetensors", json=True))
    captured = capsys.readouterr()
    assert "assumed" not in captured.err
    found = json.loads(captured.out)
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-4)
    assert found["accuracy"] == last["test_accuracy"]

    again = read_init(Config(init=out / "net.safetensors", dataset=str(coloured)))
    assert again is not None
    assert (again.expected.bgr, again.expected.size, again.assumed) == (True, 224, "")


@pytest.mark.slow
def test_a_net_in_torchvisions_layout_goes_from_pytorch_to_a_folder_of_digits_and_learns_them(tmp_path):
    write_folder(tmp_path / "digits", range(5))
    torch.manual_seed(0)
    small = {"stage_widths": (16, 32, 64), "stage_blocks": (0, 1, 0), "last_width": 128}
    net = LAYOUTS["torchvision"].build_reference(dataclasses.replace(fs.preset("torchvision", 0.5, 7), **small))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    conversion = convert_source(as_source(tmp_path / "net.pth"), stem="imagenet")
    (tmp_path / "net.safetensors").write_bytes(to_bytes(conversion.net.architecture, conversion.arrays, {}))
    options: dict[str, Any] = {"init": tmp_path / "net.safetensors", "dataset": str(tmp_path / "digits")}
    options |= {"image_size": 32, "no_flip": True, "batch_size": 32, "learning_rate": 0.05, "epochs": 3}
    evaluation = train(Config(**options, out=tmp_path / "out"))
    assert evaluation.accuracy > 0.8
