"""``python -m benchmarks.fine_tuning``: what fine-tuning a net from PyTorch is worth, on real images, no download.

A net in torchvision's layout (size 0.5, ImageNet's stem) learns scikit-learn's handwritten digits 0 to 4 in PyTorch,
is saved as a checkpoint, converted by ``python -m convert``, and fine-tuned by ``train.py`` on a folder of PNG files of
the digits 5 to 9, which it has never seen: all of it, and its classifier alone. The same is done with a net that has
learnt nothing. One row of the table is one run of ``train.py``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Int, UInt8
from PIL import Image
from sklearn.datasets import load_digits

from flax_shufflenet import preset
from flax_shufflenet.datasets import image_folder
from flax_shufflenet.images.preprocessing import expected_by
from torch_ref.torchvision import ShuffleNetV2

ROOT = Path(__file__).parents[1]
SIDE = 64
"""Pixels; the digits' own 8x8 would be one value behind the stem and the first stage."""
_TEST_SHARE = 4  # every fourth image of a class


def digits(classes: Sequence[int]) -> tuple[UInt8[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    """The images of some digits, and which they are."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, classes)
    return (images[chosen].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), labels[chosen]


def write_folder(folder: Path, classes: Sequence[int], *, largest: int | None = None) -> None:
    """``folder/{train,test}/DIGIT/*.png``; of each digit at most ``largest`` training images."""
    images, labels = digits(classes)
    for digit in classes:
        own = images[labels == digit]
        is_test = np.arange(len(own)) % _TEST_SHARE == 0
        for part, chosen in ("train", own[~is_test][:largest]), ("test", own[is_test]):
            place = folder / part / str(digit)
            place.mkdir(parents=True)
            for number, image in enumerate(chosen):
                Image.fromarray(image).save(place / f"{number:03}.png")


def pretrain(folder: Path, epochs: int) -> torch.nn.Module:
    """A net of size 0.5 that has learnt a folder's training images, normalised as torchvision's nets expect."""
    torch.manual_seed(0)
    expected = expected_by(preset("torchvision", 0.5), {})
    dataset = image_folder.load(folder, SIDE)
    pixels = torch.from_numpy((dataset.train_images / 255 - np.array(expected.mean)) / expected.std).float()
    images, labels = pixels.permute(0, 3, 1, 2), torch.from_numpy(dataset.train_labels).long()
    net = ShuffleNetV2(0.5, len(dataset.class_names))
    batch, steps = 32, len(labels) // 32
    sgd = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs * steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels))[: batch * steps].view(steps, batch):
            sgd.zero_grad()
            F.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            sgd.step()
            schedule.step()
    return net


def command(*arguments: str | Path | float) -> None:
    """Runs one of this project's commands, and shows what it is called with."""
    print("+ python", *arguments, flush=True)
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ, check=True)


def fine_tune(folder: Path, net: Path, freeze: str, epochs: int) -> str:
    """One row of the table."""
    out = folder / f"{net.stem}_{freeze}"
    command(
        "train.py", "--init", net, "--freeze", freeze, "--dataset", folder / "5_to_9", "--image_size", SIDE,
        "--no_flip", "--epochs", epochs, "--batch_size", 32, "--out", out,
    )  # fmt: skip
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][1:]
    first, last = records[0], records[-1]
    return (
        f"| {net.stem} | {freeze} | {first['test_accuracy']:.2%} | {last['test_accuracy']:.2%} | "
        f"{first['train_loss']:.3f} | {last['train_loss']:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fine_tuning", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="of fine-tuning")
    parser.add_argument("--pretraining_epochs", type=int, default=15, help="of the net in PyTorch")
    parser.add_argument("--largest", type=int, help="training images of each digit to fine-tune on (default: all)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder / "0_to_4", range(5))
        write_folder(folder / "5_to_9", range(5, 10), largest=arguments.largest)
        for name, epochs in ("pretrained", arguments.pretraining_epochs), ("untrained", 0):
            torch.save(pretrain(folder / "0_to_4", epochs).state_dict(), folder / f"{name}.pth")
            command("-m", "convert", folder / f"{name}.pth", "--stem", "imagenet")
        rows = [
            fine_tune(folder, folder / f"{name}.safetensors", freeze, arguments.epochs)
            for name in ("pretrained", "untrained")
            for freeze in ("none", "backbone")
        ]
    print("\n| net | --freeze | test, epoch 1 | test, last | train loss, epoch 1 | last |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
