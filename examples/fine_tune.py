"""Fine-tunes a net that was converted from PyTorch on a folder of images.

    python examples/fine_tune.py [OUT]

The folder is made of scikit-learn's handwritten digits. Needs ``pip install -e '.[train,torch]'``.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits

import convert
import flax_shufflenet as fs
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.loop import train


def make_folder(folder: Path, images: int = 400) -> None:
    """FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png: what ``train.py --dataset FOLDER`` takes."""
    values, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(values[:images].reshape(-1, 8, 8), labels[:images], strict=True)):
        part = "test" if number % 4 == 0 else "train"
        path = folder / part / f"digit_{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32)).save(path)


def main(out: Path) -> None:
    make_folder(out / "digits")

    # A checkpoint in PyTorch: the net for CIFAR-10 that comes with the package, in the layout of its torch_ref.
    torch.save(convert.to_torch(fs.pretrained("shufflenet_0.5_cifar10"), "seed"), out / "cifar10.pt")

    # Converted and proven. The file says nothing of its images, for which training takes CIFAR-10's normalisation.
    model, _ = convert.load_torch(out / "cifar10.pt")
    fs.save(model, out / "cifar10.safetensors")

    # The same as: python train.py --init cifar10.safetensors --dataset digits --freeze backbone ...
    # Without freeze all of the net learns, which takes longer and reaches more.
    config = Config(
        init=out / "cifar10.safetensors",
        dataset=str(out / "digits"),
        freeze="backbone",
        no_flip=True,
        epochs=8,
        batch_size=20,
        out=out / "run",
    )
    result = train(config)
    print(f"test accuracy {result.accuracy:.1%}; {out / 'run' / 'net.safetensors'} is for predict, evaluate and export")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder for all that is made (default: one that is removed)")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as here:
        main(out or Path(here))
