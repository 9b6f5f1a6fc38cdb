"""How fast images are decoded: ``python -m benchmarks.decoding``; the streaming pipeline against torch's DataLoader.

Both have one process that reads JPEG files with Pillow, takes a random resized crop of each, mirrors half of them and
hands over batches of 224x224 bytes; the other side does what ``torchvision.transforms.RandomResizedCrop`` does, since
torchvision itself need not be installed. They take turns, and the medians of their rounds are compared: images a
second, and for each second that the process has had a CPU, which other work on the machine does not change as much.
The files are made of scikit-learn's two photographs, once in the size of ImageNet's and once in that of a camera, of
which the pipeline decodes no more than a crop needs. Needs Linux.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.photographs import photographs
from flax_shufflenet.datasets import image_folder, streamed
from flax_shufflenet.system import allocator
from flax_shufflenet.training import streaming

SIDE, BATCH = 224, 64
_FILES = 64  # for each class
_UNTIMED = 4  # batches at the start of a turn: some were made while the other had its own
_SIZES = {"ImageNet's, 500 pixels wide": 500, "a camera's, 2,500 pixels wide": 2500}


def write_files(folder: Path, width: int) -> None:
    """Each file is another part of a photograph, so that none is in a cache of decoded ones."""
    random = np.random.default_rng(0)
    for name, photograph in photographs().items():
        for part, count in (("train", _FILES), ("test", 1)):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                left, top = random.integers(0, 100, 2).tolist()
                box = (left, top, left + 540, top + 320)
                resized = photograph.resize((width, width * 320 // 540), Image.Resampling.BICUBIC, box=box)
                resized.save(place / f"{number:03}.jpg", quality=90)


class TorchImages(Dataset):
    """The files as a PyTorch user reads them, with ``RandomResizedCrop`` as it is documented."""

    def __init__(self, paths: list[Path], length: int) -> None:
        self._paths = paths
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self._paths[index % len(self._paths)]) as file:
            image = file.convert("RGB")
        left, top, width, height = self._box(*image.size)
        crop = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if torch.rand(()) < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(crop))

    @staticmethod
    def _box(width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * torch.empty(()).uniform_(0.08, 1.0).item()
            ratio = math.exp(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
            columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < columns <= width and 0 < rows <= height:
                top = int(torch.randint(0, height - rows + 1, ()))
                left = int(torch.randint(0, width - columns + 1, ()))
                return left, top, columns, rows
        return 0, 0, width, height


Speeds = Generator[tuple[float, float]]
"""Images a second, and images for each second that the process that decodes has had a CPU: one pair for each round."""


def stream_rounds(folder: Path, rounds: int, batches: int) -> Speeds:
    """Those of this pipeline."""
    before = multiprocessing.active_children()
    dataset = streamed.open_stream(image_folder.find_parts(folder, None), SIDE, skip_unreadable=False)
    epochs = math.ceil((rounds + 1) * (batches + _UNTIMED) * BATCH / len(dataset.train_labels))
    stream = streaming.BatchStream(dataset, seed=0, epochs=epochs, batch_size=BATCH, workers=1)
    try:
        yield from _rounds(stream.next_batch, batches, before)
    finally:
        stream.close()


def torch_rounds(folder: Path, rounds: int, batches: int) -> Speeds:
    """Those of torch's DataLoader."""
    before = multiprocessing.active_children()
    paths = sorted((folder / "train").rglob("*.jpg"))
    dataset = TorchImages(paths, (rounds + 1) * (batches + _UNTIMED) * BATCH)
    # Its process is started as ours is: JAX's threads do not take well to a fork.
    loader = iter(DataLoader(dataset, BATCH, shuffle=True, num_workers=1, multiprocessing_context="spawn"))
    yield from _rounds(lambda: next(loader), batches, before)


def _rounds(next_batch: Callable[[], object], batches: int, others: list[BaseProcess]) -> Speeds:
    next_batch()
    (reader,) = [child.pid for child in multiprocessing.active_children() if child not in others]
    while True:
        for _ in range(_UNTIMED):
            next_batch()
        wall, cpu = time.perf_counter(), _cpu_seconds(reader)
        for _ in range(batches):
            next_batch()
        images = batches * BATCH
        yield images / (time.perf_counter() - wall), images / (_cpu_seconds(reader) - cpu)


def _cpu_seconds(process: int | None) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _medians(pairs: list[tuple[float, float]]) -> str:
    ours, theirs = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
    return f"{ours:10,.0f}{theirs:10,.0f}{statistics.median(one / other for one, other in pairs):8.2f}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=6, help="of 64 images, in each round")
    arguments = parser.parse_args()
    allocator.restart_with_fast_malloc()
    print(f"medians of {arguments.rounds} rounds of {arguments.batches * BATCH} images, of this pipeline and of torch")
    print(f"{'':32}{'images/s':>10}{'torch':>10}{'ratio':>8}{'a core':>10}{'torch':>10}{'ratio':>8}")
    for name, width in _SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), width)
            ours = stream_rounds(Path(folder), arguments.rounds, arguments.batches)
            theirs = torch_rounds(Path(folder), arguments.rounds, arguments.batches)
            pairs = [tuple(zip(next(ours), next(theirs), strict=True)) for _ in range(arguments.rounds)]
            ours.close()
            theirs.close()
        wall, cpu = ([pair[kind] for pair in pairs] for kind in (0, 1))
        print(f"{name:32}{_medians(wall)}{_medians(cpu)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
