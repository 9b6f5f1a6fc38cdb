"""Ports a PyTorch checkpoint to Flax, proves the port, and takes it back bit for bit.

    python examples/port_a_checkpoint.py

Needs ``pip install -e '.[torch]'``.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

import convert
import flax_shufflenet as fs
import torch_ref


def main(folder: Path) -> None:
    # What a training script in PyTorch leaves: a state_dict, here behind a wrapper and a prefix.
    torch.manual_seed(0)
    net = torch_ref.ShuffleNetV2(net_size=0.5, num_classes=10).eval()
    wrapped = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 90, "model": wrapped}, folder / "checkpoint.pt")

    # Reads the file without executing anything in it, finds the layout by the names of its tensors, maps them, and
    # runs both nets, the original in PyTorch against the port in JAX, in float64 and in float32. A proof that fails
    # is an error. ``python -m convert checkpoint.pt`` does the same and writes the port to a file.
    model, report = convert.load_torch(folder / "checkpoint.pt")
    print("\n".join(report.lines()))

    # One file holds weights and architecture.
    fs.save(model, folder / "net.safetensors")
    model = fs.load(folder / "net.safetensors")

    # The port is a Flax module, called with NHWC images. Fused, it is the same function in fewer operations.
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3), np.float32)
    scores = np.asarray(fs.fuse(model)(images))
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    difference = np.abs(scores - expected).max() / np.abs(expected).max()
    print(f"\nscores {scores.shape}, {difference:.1e} of the largest from PyTorch's")

    # And back to PyTorch, proven too.
    back = convert.to_torch(model, "seed")
    same = all(torch.equal(back[name], tensor) for name, tensor in net.state_dict().items())
    print(f"back in PyTorch: {len(back)} tensors, {'the same bit for bit' if same else 'NOT THE SAME'}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        main(Path(here))
