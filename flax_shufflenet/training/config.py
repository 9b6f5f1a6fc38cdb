"""What a training run is told on its command line."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from flax_shufflenet.architecture import seed


class OptionError(ValueError):
    """An option's value cannot be used; the message names the option."""


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message is one line that says why and what to do."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def default_data_dir() -> Path:
    """The folder that TensorFlow Datasets uses unless told otherwise."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Trains ShuffleNetV2 and saves it as net.safetensors, with one line of JSON per epoch in metrics.jsonl.

    Raises:
        OptionError: a value out of its range.
    """

    net_size: float = 1.0
    """Width of the net: 0.5, 1.0, 1.5 or 2.0."""

    dataset: Literal["cifar10", "cifar100", "digits"] = "cifar10"
    """What to learn. CIFAR is downloaded once (170 MB); the 1797 handwritten digits need no download."""

    data_dir: Path = dataclasses.field(default_factory=default_data_dir)
    """Folder of TensorFlow Datasets, where CIFAR is kept. An archive from the CIFAR home page that lies there is
    used instead of a download."""

    epochs: int = 200
    """Passes over the training images."""

    batch_size: int = 256
    """Images per step. The last, smaller batch of an epoch is left out; every epoch is shuffled anew."""

    learning_rate: float = 0.1
    """Learning rate of the first step; it falls to 0 along a cosine over the whole run."""

    momentum: float = 0.9
    """Nesterov momentum of SGD."""

    weight_decay: float = 5e-4
    """Added to the gradient as WEIGHT_DECAY times the parameter, for all parameters."""

    seed: int = 0
    """Sets initial weights, order and augmentation: the same seed gives the same run."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the net computes in. Parameters, batch statistics and the loss are float32 either way."""

    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: runs/DATASET_NET_SIZE)")] = None
    """Folder for the results."""

    force: bool = False
    """Replace the results of an earlier run in OUT."""

    no_compilation_cache: bool = False
    """Compile everything anew; otherwise compiled programs are kept in the user's cache folder."""

    def __post_init__(self) -> None:
        try:
            seed(self.net_size)
        except ValueError as error:
            raise OptionError(f"--{error}") from None
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise OptionError(f"--{name} must be a finite number, at least 0, not {value}")
        if not 0 <= self.momentum < 1:
            raise OptionError(f"--momentum must be at least 0 and below 1, not {self.momentum}")
        if not 0 <= self.seed < 2**31:
            raise OptionError(f"--seed must be at least 0 and below 2**31, not {self.seed}")

    @property
    def out_dir(self) -> Path:
        """The folder for the results, as given or by default."""
        return self.out or Path("runs") / f"{self.dataset}_{self.net_size}"
