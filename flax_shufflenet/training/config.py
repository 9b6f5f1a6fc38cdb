"""What a training run is told on its command line."""

import dataclasses
import glob
import importlib.util
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from flax_shufflenet.architecture import FAMILIES, preset
from flax_shufflenet.datasets.catalogue import CHOICES, DATASETS, IMAGENET, SMALL, check_dataset, default_data_dir
from flax_shufflenet.errors import OptionError

AUTO = "auto"

PaddingMode = Literal["constant", "reflect"]

DEFAULT_FAMILY = "seed"
# The others are backbones of detectors, which have no classes.
FAMILIES_TO_TRAIN = tuple(family for family in FAMILIES if preset(family).num_classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What is learnt, and by which net."""

    net_size: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 1.0, or INIT's)")] = None
    """Width of the net: 0.5, 1.0, 1.5 or 2.0."""

    family: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: seed, or INIT's)")] = None
    """Whose ShuffleNetV2 a new net is: seed, kuangliu, chenyaofo and weiaicunzai for small images; torchvision, megvii,
    ericsun99, mmpretrain, super_gradients, birder, pytorchcv and pytorchcv_b for those of ImageNet's size."""

    init: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: random weights)")] = None
    """Fine-tuning: a net.safetensors to start from, or the name of a net that comes with the package. Its classifier is
    made anew if the classes are others, and it gets images as it got them before: its size, normalisation and order of
    the channels."""

    dataset: Annotated[str, arg(metavar=CHOICES)] = "cifar10"
    """What to learn. CIFAR is downloaded once (170 MB); the 1797 handwritten digits need no download;
    imagenet2012 is read as TensorFlow Datasets has prepared it, in array_record files. Of a FOLDER, the images in
    FOLDER/train/CLASS and FOLDER/test/CLASS (or val, valid, validation); any kind that Pillow reads."""

    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="(default: the net's)")] = None
    """Side of the squares that a folder's or ImageNet's images are brought to. The other datasets are 32x32."""

    test_share: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="(FOLDER has a test part)")] = None
    """For a FOLDER without parts, FOLDER/CLASS: the share of each class that is held out for testing, such as 0.1.
    Which images those are follows from their names alone."""

    skip_unreadable: bool = False
    """Go on without those of a FOLDER's or ImageNet's images that cannot be read, which are named; otherwise they are
    an error."""

    data_dir: Path = dataclasses.field(default_factory=default_data_dir)
    """Folder of TensorFlow Datasets. An archive of CIFAR's home page that lies there is used; no download then."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How it is learnt."""

    freeze: Literal["backbone", "none"] = "none"
    """What stays as it is in INIT: the backbone, with its running statistics, so that only the classifier is trained;
    or nothing."""

    no_flip: bool = False
    """Do not mirror half of the training images. Digits are never mirrored."""

    crop_padding: int = 4
    """Pixels that are added to each side of a training image, of which a crop of its own size is then taken at random.
    Random resized crops, those of large images, have none."""

    crop_padding_mode: PaddingMode = "constant"
    """What is added, in the words of torchvision's RandomCrop: black, or the image mirrored at its edge."""

    epochs: int = 200
    """Passes over the training images."""

    batch_size: int = 256
    """Images per step, on all devices together. The last, smaller batch of an epoch is left out; every epoch is
    shuffled anew."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """What trains the kernels of 1x1 convolutions: SGD, or Muon with a momentum of 0.95. SGD trains the rest."""

    learning_rate: float = 0.1
    """Highest learning rate; from there it falls to 0 along a cosine over the rest of the run."""

    warmup_epochs: float = 0.0
    """Epochs, or a part of one, in which the learning rate rises to LEARNING_RATE in equal steps."""

    momentum: float = 0.9
    """Nesterov momentum of SGD."""

    weight_decay: float = 5e-4
    """Added to the gradient as WEIGHT_DECAY times the parameter."""

    decayed: Literal["all", "kernels"] = "all"
    """Parameters that WEIGHT_DECAY applies to: all, or all but biases and batch normalisation."""

    muon_learning_rate: float = 0.02
    """Highest learning rate of Muon, which rises and falls as LEARNING_RATE does."""

    muon_weight_decay: float = 0.025
    """Each step of Muon shrinks its kernels by MUON_WEIGHT_DECAY times its learning rate, apart from the gradient."""

    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in the training loss."""

    random_erasing: float = 0.0
    """Share of the training images in which a random rectangle (2 to 33 % of the area) becomes the mean colour."""

    ema: float = 0.0
    """Decay of an exponential moving average over the steps, which is then the net that is saved; 0 for none."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the net computes in. Parameters, batch statistics and the loss are float32 either way."""

    batch_statistics: Literal["synchronised", "per_device"] = "synchronised"
    """What several devices normalise with: the statistics of the whole batch, or each those of its own images, as
    PyTorch's DistributedDataParallel does. The running statistics are then the average over the devices."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the run goes about it."""

    seed: int = 0
    """Sets initial weights, order and augmentation: the same seed gives the same run."""

    test_flip: bool = False
    """Test on the mean of the scores of an image and its mirror image."""

    pipeline: Literal["auto", "device", "stream"] = "auto"
    """Where the images lie: all in the device's memory, or those of a FOLDER on disk, read batch by batch. auto takes
    the device's memory while they fit a quarter of it."""

    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: runs/DATASET_NET_SIZE)")] = None
    """Folder for the results."""

    resume: bool = False
    """Insist on going on with an unfinished run in OUT. Without this, one that lies there is gone on with as well,
    and where there is none a new one starts."""

    force: bool = False
    """Start anew, and replace what an earlier run left in OUT, finished or not."""

    tensorboard: bool = False
    """Also write each epoch's figures for TensorBoard, to OUT/tensorboard. Needs tensorboardX."""

    no_compilation_cache: bool = False
    """Compile everything anew; otherwise compiled programs are kept in the user's cache folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Several processes, on one machine or many. All are started with the same options; process 0 prints and writes."""

    coordinator: Annotated[
        str | None, arg(metavar="HOST:PORT|auto", help_behavior_hint="(default: one process alone)")
    ] = None
    """Where process 0 can be reached: its machine, and a port that is free there. With auto, JAX finds out about all
    processes by itself, as it can on Slurm, Open MPI, Cloud TPU and GKE."""

    num_processes: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(with HOST:PORT)")] = None
    """How many processes there are."""

    process_id: Annotated[int | None, arg(metavar="INT", help_behavior_hint="(with HOST:PORT)")] = None
    """Which of them this is, from 0 to NUM_PROCESSES - 1."""

    def check_processes(self) -> None:
        """
        Raises:
            OptionError: a value out of its range, or one without the others.
        """
        numbers = {"num_processes": self.num_processes, "process_id": self.process_id}
        explicit = self.coordinator not in (None, AUTO)
        for name, value in numbers.items():
            if (value is not None) != explicit:
                raise OptionError(f"--{name} must be given together with --coordinator HOST:PORT, and only then")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise OptionError(f"--coordinator must be HOST:PORT or {AUTO}, not {self.coordinator}")
        if self.num_processes < 1:
            raise OptionError(f"--num_processes must be at least 1, not {self.num_processes}")
        if not 0 <= self.process_id < self.num_processes:
            raise OptionError(f"--process_id must be from 0 to {self.num_processes - 1}, not {self.process_id}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TaskOptions, TrainingOptions, RunOptions, ProcessOptions):
    """A whole run; without options, the published recipe.

    Raises:
        OptionError: a value out of its range.
    """

    def __post_init__(self) -> None:
        for name in ("init", "data_dir", "out"):  # from Python, a str is a path too
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        # The same folder, however its name is written; but ./digits is no name of a dataset.
        folder = str(Path(self.dataset))
        if folder not in DATASETS:
            object.__setattr__(self, "dataset", folder)
        if self.net_size is None and self.init is None:
            object.__setattr__(self, "net_size", 1.0)
        if self.family is not None and self.init is not None:
            raise OptionError("--family is for a new net, and INIT has its own: leave it out")
        if self.family is not None and self.family not in FAMILIES_TO_TRAIN:
            raise OptionError(f"--family must be one of {', '.join(FAMILIES_TO_TRAIN)}, not {self.family}")
        if self.net_size is not None:
            try:
                preset(self.family or DEFAULT_FAMILY, self.net_size)
            except ValueError as error:
                raise OptionError(f"--{error}") from None
        check_dataset(self.dataset, skip_unreadable=self.skip_unreadable)
        if self.freeze == "backbone" and self.init is None:
            raise OptionError("--freeze backbone needs a net to start from: give --init, or leave it out")
        for name in ("muon_learning_rate", "muon_weight_decay"):
            if self.optimizer == "sgd" and getattr(self, name) != getattr(TrainingOptions, name):
                raise OptionError(f"--{name} is for --optimizer muon: give that too, or leave it out")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise OptionError("--tensorboard needs tensorboardX: pip install 'flax-shufflenet[tensorboard]'")
        if self.image_size is not None and self.dataset in SMALL:
            raise OptionError(f"--image_size is for a folder of images and {IMAGENET}; {self.dataset} is 32x32")
        if self.image_size is not None and self.image_size < 8:
            raise OptionError(f"--image_size must be at least 8, not {self.image_size}")
        if self.pipeline == "stream" and self.dataset in SMALL:
            raise OptionError(f"--pipeline stream is for a folder of images; {self.dataset} is small: leave it out")
        if self.pipeline == "device" and self.dataset == IMAGENET:
            raise OptionError(f"--pipeline device cannot be used with --dataset {IMAGENET}, which is read from disk")
        if self.test_share is not None and self.dataset in DATASETS:
            raise OptionError(f"--test_share is for a folder of images; {self.dataset} has test images of its own")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise OptionError(f"--test_share must be above 0 and below 1, not {self.test_share}")
        # Orbax takes [, * and ? for a pattern, and finds nothing of what it wrote; TensorStore writes no such bytes.
        out = os.fsencode(self.out_dir.resolve()).decode("utf-8", "backslashreplace")
        if glob.escape(out) != str(self.out_dir.resolve()):
            raise OptionError(
                f"--out {out} has [, * or ? in it, or bytes that are not UTF-8, and checkpoints cannot lie there: "
                "choose another"
            )
        if self.test_share is not None and self.out_dir.resolve().is_relative_to(Path(self.dataset).resolve()):
            raise OptionError(
                f"--out {self.out_dir} lies in --dataset {self.dataset}, of which --test_share takes each folder for a "
                "class: choose another --out, outside of it"
            )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.crop_padding < 0:
            raise OptionError(f"--crop_padding must be at least 0, not {self.crop_padding}")
        for name in ("learning_rate", "weight_decay", "muon_learning_rate", "muon_weight_decay"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise OptionError(f"--{name} must be a finite number, at least 0, not {value}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise OptionError(
                f"--warmup_epochs must be at least 0 and below --epochs {self.epochs}, not {self.warmup_epochs}"
            )
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"--{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if not 0 <= self.random_erasing <= 1:
            raise OptionError(f"--random_erasing must be a share from 0 to 1, not {self.random_erasing}")
        if not 0 <= self.seed < 2**31:
            raise OptionError(f"--seed must be at least 0 and below 2**31, not {self.seed}")
        if self.test_flip and self.dataset == "digits":
            raise OptionError("--test_flip cannot be used with --dataset digits: a mirrored digit is no digit")
        if self.resume and self.force:
            raise OptionError("--resume goes on with a run and --force replaces it: give one of them")
        if self.test_flip and self.no_flip:
            raise OptionError("--test_flip cannot be used with --no_flip: the net would see no mirrored image before")
        self.check_processes()

    @property
    def out_dir(self) -> Path:
        """The folder for the results, as given or by default."""
        net = f"{self.family}_{self.net_size}" if self.family else self.net_size
        name = "fine_tuned" if self.init else net
        return self.out or Path("runs") / f"{Path(self.dataset).resolve().name}_{name}"
