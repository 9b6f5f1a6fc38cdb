"""``python -m benchmarks.parity``: every layout and size through a file, PyTorch to Flax and back, measured.

Each net gets random weights and random batch statistics, is saved as a PyTorch checkpoint, converted by
``convert``, loaded by ``flax_shufflenet.load``, and compared with the original in PyTorch.
"""

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
import torch

import flax_shufflenet as fs
from benchmarks.report import installed_versions
from convert import pipeline
from convert.evidence.choices import Stem
from convert.layouts import LAYOUTS
from convert.mapping import to_tensors
from convert.proof.verify import FLOAT32_BAR, FLOAT64_BAR
from flax_shufflenet.system.files import write_whole
from flax_shufflenet.weights import flat_arrays, to_bytes
from torch_ref.randomise import randomise

SIZES = (0.5, 1.0, 1.5, 2.0)


def measure(layout: str, size: float, folder: Path) -> str:
    """One row of the table."""
    architecture = fs.preset(layout, size)
    net = randomise(LAYOUTS[layout].build_reference(architecture))
    checkpoint, converted = folder / f"{layout}_{size}.pt", folder / f"{layout}_{size}.safetensors"
    torch.save(net.state_dict(), checkpoint)

    stems: dict[str, Stem] = {"chenyaofo": "cifar", "torchvision": "imagenet"}
    conversion = pipeline.convert_source(pipeline.as_source(checkpoint), stem=stems.get(layout))
    write_whole(converted, to_bytes(architecture, conversion.arrays, conversion.metadata))
    model = fs.load(converted)
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    tensors = to_tensors(LAYOUTS[layout], model.architecture, arrays)
    original = torch.load(io.BytesIO(checkpoint.read_bytes()), weights_only=True)
    exact = tensors.keys() == original.keys() and all(torch.equal(tensors[name], original[name]) for name in original)

    proof = conversion.report.proof
    green = exact and proof.failure is None
    return (
        f"| {layout} | {size} | {len(original)} | {proof.float64:.1e} | {proof.jax_float32:.1e} | "
        f"{proof.torch_float32:.1e} | {proof.float32_ratio:.2f} | {'exact' if exact else 'DIFFERS'} | "
        f"{'proven' if green else proof.failure} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--sizes", nargs="+", type=float, choices=SIZES, default=SIZES)
    arguments = parser.parse_args()
    print(", ".join(f"{name} {number}" for name, number in installed_versions().items()))
    print(f"bars: float64 {FLOAT64_BAR:.0e}; float32 {FLOAT32_BAR:g} times PyTorch's own error; outputs, eval mode\n")
    print("| layout | size | tensors | float64 difference | float32 error, JAX | PyTorch | ratio | there and back | |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for layout in arguments.layouts:
            for size in arguments.sizes:
                print(measure(layout, size, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
