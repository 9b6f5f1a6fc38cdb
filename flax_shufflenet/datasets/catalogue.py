"""The datasets that there are names for, and where theirs lie."""

import os
from pathlib import Path

from flax_shufflenet.errors import OptionError

SMALL = ("cifar10", "cifar100", "digits")
"""Images of 32x32, of which all fit any memory."""

IMAGENET = "imagenet2012"
"""As TensorFlow Datasets has prepared it; read from disk while a net trains."""

DATASETS = (*SMALL, IMAGENET)

CHOICES = "|".join((*DATASETS, "FOLDER"))
"""What ``--dataset`` takes, for its help."""


def check_dataset(name: str, *, skip_unreadable: bool) -> None:
    """Raises:
    OptionError: neither the name of a dataset nor a folder, or one that has no unreadable images to skip.
    """
    if name not in DATASETS and not os.path.isdir(name):  # Path.is_dir raises for a name that is too long
        raise OptionError(f"--dataset {name} is neither {', '.join(DATASETS)} nor a folder")
    if skip_unreadable and name in SMALL:
        raise OptionError(f"--skip_unreadable is for a folder of images and {IMAGENET}, not for {name}")


def default_data_dir() -> Path:
    """The folder that TensorFlow Datasets uses unless told otherwise; the working folder's, where nobody is at home."""
    name = "tensorflow_datasets"
    try:
        return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / name)
    except RuntimeError:  # in a container, where the user has no name
        return Path(name)
