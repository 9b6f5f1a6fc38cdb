"""``python -m benchmarks.top1 CHECKPOINT --data_dir DIR``: a checkpoint on a whole CIFAR test set, in both frameworks.

The original tensors run in PyTorch, the converted net in JAX, plain and fused, on the same 10,000 images.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flax_shufflenet as fs
from benchmarks.report import installed_versions
from convert import pipeline
from convert.errors import ConvertError
from convert.evidence.choices import Stem
from convert.layouts import LAYOUTS
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.functional import split
from flax_shufflenet.weights import from_arrays

BATCH = 500


def in_batches(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, title: str) -> np.ndarray:
    started = time.perf_counter()
    outputs = np.concatenate([run(images[first : first + BATCH]) for first in range(0, len(images), BATCH)])
    print(f"{title:<24}{time.perf_counter() - started:6.1f} s", flush=True)
    return outputs


def measure(checkpoint: Path, stem: Stem | None, dataset_name: str, data_dir: Path) -> None:
    conversion = pipeline.convert_source(pipeline.as_source(checkpoint), stem=stem)
    print("\n".join(conversion.report.lines()))
    net = conversion.net
    original = LAYOUTS[net.layout.name].build_reference(net.architecture)
    original.load_state_dict(dict(net.tensors), strict=True)
    original.eval()
    model = from_arrays(net.architecture, conversion.arrays)
    network, parameters, statistics = split(model)
    forward = jax.jit(lambda images: network.apply(parameters, statistics, images)[0])
    fast = fs.fuse(model)

    dataset = data.load(dataset_name, data_dir)
    images = ((dataset.test_images / 255 - np.array(dataset.mean)) / np.array(dataset.std)).astype(np.float32)
    print(f"\n{len(images):,} test images of {dataset.source}")

    def in_pytorch(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return original(torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())).numpy()

    theirs = in_batches(in_pytorch, images, "PyTorch")
    for title, run in (("JAX", forward), ("JAX, fused", fast)):
        ours = in_batches(lambda batch, run=run: np.asarray(run(jnp.asarray(batch))), images, title)
        same = int(np.sum(ours.argmax(1) == theirs.argmax(1)))
        print(
            f"  same top-1 as PyTorch for {same:,} of {len(images):,}; "
            f"accuracy {np.mean(ours.argmax(1) == dataset.test_labels):.2%} "
            f"(PyTorch {np.mean(theirs.argmax(1) == dataset.test_labels):.2%}); "
            f"largest difference of an output {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.top1", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data_dir", type=Path, required=True, help="TFDS's folder")
    parser.add_argument("--dataset", choices=("cifar10", "cifar100"), default="cifar10")
    parser.add_argument("--stem", choices=("cifar", "imagenet"), help="where the tensors cannot tell")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {number}" for name, number in installed_versions().items()))
    try:
        measure(arguments.checkpoint, arguments.stem, arguments.dataset, arguments.data_dir)
    except (ConvertError, TrainingError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
