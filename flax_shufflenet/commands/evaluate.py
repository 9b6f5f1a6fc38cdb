"""``flax-shufflenet evaluate NET``: what a net is worth on a test set; ``--help`` lists the options."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from tyro.conf import Positional, arg

from flax_shufflenet.commands.command_line import run
from flax_shufflenet.commands.measuring import BATCH, EvaluationSet, Result, measure
from flax_shufflenet.datasets.catalogue import CHOICES, DATASETS, IMAGENET, SMALL, check_dataset, default_data_dir
from flax_shufflenet.errors import OptionError
from flax_shufflenet.images.options import ImageOptions, note
from flax_shufflenet.runs.calibration import BINS
from flax_shufflenet.runs.run import points, wilson_interval
from flax_shufflenet.shipped import nets as shipped_nets
from flax_shufflenet.system.allocator import restart_with_fast_malloc

if TYPE_CHECKING:
    from flax_shufflenet.datasets.image_folder import ImageFiles
    from flax_shufflenet.images.preprocessing import Preprocessing
    from flax_shufflenet.images.robustness import Robustness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ImageOptions):
    """Measures a net on a test set: accuracy with its 95 % confidence interval, loss (the negative log-likelihood),
    expected calibration error, accuracy of each class; with --robustness also that of images that are changed.

    Image size and normalisation come from the net's file. A net converted from PyTorch has none: what is then assumed
    is said on stderr. Exit codes: 0 done; 2 the command line is wrong; 1 anything else, with one line on stderr.
    """

    net: Annotated[Positional[Path], arg(metavar="NET")]
    """The net: a file that training, convert or flax_shufflenet.save wrote, or the name of one that comes with the
    package."""

    dataset: Annotated[
        str | None,
        arg(
            metavar=CHOICES,
            help_behavior_hint="(default: what the net was trained on, else CIFAR by the class count)",
        ),
    ] = None
    """Whose test images to take; of imagenet2012, the validation part. Of a FOLDER, those in FOLDER/test/CLASS (or val,
    valid, validation) or, where it has no parts, in FOLDER/CLASS, without those that the net was trained on with
    --test_share."""

    data_dir: Path = dataclasses.field(default_factory=default_data_dir)
    """Folder of TensorFlow Datasets, where CIFAR and ImageNet are kept."""

    test_flip: bool = False
    """Add the scores of each image and of its mirror image, which is for classes that look alike in a mirror."""

    robustness: bool = False
    """Also say how accurate the net is on mirrored images, where it was trained on such, and on images shifted by 2 and
    by 4 pixels: the mean of four directions, black beyond the edge. Takes some ten times as long."""

    skip_unreadable: bool = False
    """Go on without those of a FOLDER's or ImageNet's images that cannot be read, which are named; otherwise they are
    an error."""

    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is not None:
            check_dataset(self.dataset, skip_unreadable=self.skip_unreadable)


def evaluate(options: Options) -> int:
    """Prints the figures; returns 0.

    Raises:
        OptionError, TrainingError, OSError, ValueError: nothing can be measured; the message is one line.
    """
    # Imported here: JAX takes a second that --help and a wrong option need not wait for.
    from flax_shufflenet import fuse, read_metadata
    from flax_shufflenet.images.pixel_net import of_pixels, open_net, with_mirror_images
    from flax_shufflenet.images.robustness import Robustness
    from flax_shufflenet.system.platforms import check_platforms
    from flax_shufflenet.system.user_cache import keep_compiled_programs

    check_platforms()
    keep_compiled_programs()
    file = shipped_nets.find(options.net)
    model, expected = open_net(file, options)
    classes = model.architecture.num_classes
    if not classes:
        raise ValueError(f"{options.net}: a backbone, which has no classes")
    assumed = {name: what for name, what in expected.assumed.items() if name != "class names"}
    metadata = read_metadata(file)
    dataset = options.dataset or metadata.get("dataset")
    if dataset is None:
        dataset = _dataset_by_count(options.net, classes)
        assumed["dataset"] = f"{dataset}, from the net's {classes} classes (--dataset to change it)"
    elif options.dataset is None and dataset not in DATASETS and not os.path.isdir(dataset):
        raise OptionError(
            f"name the --dataset: {options.net} was trained on the folder {dataset}, which is not to be found from here"
        )
    check_dataset(dataset, skip_unreadable=options.skip_unreadable)
    why_no_flip = ""
    if dataset == "digits":
        why_no_flip = "a mirrored digit is no digit"
    elif metadata.get("flip") == "false":
        why_no_flip = "the net was trained on no mirrored images, which might be of another class"
    if options.test_flip and why_no_flip:
        place = "--dataset digits" if dataset == "digits" else options.net
        raise OptionError(f"--test_flip cannot be used with {place}: {why_no_flip}")
    if dataset not in DATASETS and not expected.names_known:
        assumed["order of the classes"] = "that of the names of their folders"
    note(assumed, options)
    test = _evaluation_set(options, dataset, expected, metadata)

    net = of_pixels(fuse(model), expected)
    robustness = None
    if options.robustness:
        robustness = Robustness(net, expected.size, test_flip=options.test_flip, why_no_flip=why_no_flip)
    result = measure(with_mirror_images(net) if options.test_flip else net, test, expected.size, robustness)
    if options.json:
        print(json.dumps(_record(options, test, result, robustness, expected)))
    else:
        _print(options, test, result, robustness)
    return 0


def _dataset_by_count(net: Path, classes: int) -> str:
    datasets = {10: "cifar10", 100: "cifar100"}
    if classes not in datasets:
        raise OptionError(f"name the --dataset: {net} does not say what its {classes} classes are")
    return datasets[classes]


def _by_the_nets_names(
    net: Path, expected: "Preprocessing", dataset: str, class_names: tuple[str, ...], labels: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """The dataset's classes and labels in the net's order, which the names tell where the net's file has them.

    Raises:
        ValueError: they are other classes.
    """
    names = expected.class_names
    if len(class_names) != len(names):
        raise ValueError(f"{net} has {len(names)} classes, but {dataset} has {len(class_names)}")
    if not expected.names_known:
        return class_names, labels
    ours, theirs = (
        [name for name in one if name not in other] for one, other in ((names, class_names), (class_names, names))
    )
    if ours or theirs:
        raise ValueError(f"{net} has other classes than {dataset}: {_some(ours)} where that has {_some(theirs)}")
    return names, np.array([names.index(name) for name in class_names])[labels]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _evaluation_set(
    options: Options, dataset: str, expected: "Preprocessing", metadata: Mapping[str, str]
) -> EvaluationSet:
    from PIL import Image

    from flax_shufflenet.datasets import data
    from flax_shufflenet.datasets.image_folder import refuse_or_skip
    from flax_shufflenet.images.reading import ImageError, in_threads, read_as

    unreadable: list[ImageError] = []
    if dataset in SMALL:
        whole = data.load(dataset, options.data_dir)
        source, class_names, labels = whole.source, whole.class_names, whole.test_labels
        fitted = (expected.fit(Image.fromarray(image)) for image in whole.test_images)
    elif dataset == IMAGENET:
        from flax_shufflenet.datasets import imagenet

        part, class_names = imagenet.validation_part(options.data_dir)
        source, labels = str(part.place), part.labels
        rows = range(len(labels))
        fitted = in_threads(lambda row: read_as(part.files[row], expected.fit), rows, ahead=2 * BATCH)
    else:
        files, source = _files_of(Path(dataset), options.net, metadata)
        class_names, labels = files.class_names, files.labels
        unreadable += files.unreadable
        fitted = in_threads(lambda path: read_as(path, expected.fit), files.paths, ahead=2 * BATCH)
    class_names, labels = _by_the_nets_names(options.net, expected, dataset, class_names, labels)

    def in_batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        images, own, read = [], [], 0
        for image, label in zip(fitted, labels.tolist(), strict=True):
            if isinstance(image, ImageError):
                unreadable.append(image)
            elif not unreadable or options.skip_unreadable:  # otherwise the rest is read only to be named
                images.append(image)
                own.append(label)
                read += 1
            if len(own) == BATCH:
                yield np.stack(images), np.array(own)
                images, own = [], []
        refuse_or_skip(unreadable, Path(dataset), skip=options.skip_unreadable)
        if not read:
            raise ValueError(f"{source}: no image that can be read")
        if own:
            yield np.stack(images), np.array(own)

    return EvaluationSet(source, class_names, len(labels), in_batches(), unreadable)


def _files_of(folder: Path, net: Path, metadata: Mapping[str, str]) -> "tuple[ImageFiles, str]":
    """The files to test on, and for people where they are from. Those that the net was trained on are left out of a
    folder that does not say which are for testing, or it is said that they are."""
    from flax_shufflenet.datasets import held_out, image_folder

    files = image_folder.files_to_test(folder)
    if "dataset" in metadata and image_folder.is_training_part(folder, Path(metadata["dataset"])):
        return files, f"{folder}, which the net was trained on"
    if "trained_on" not in metadata or files.folder != folder:
        return files, str(files.folder)
    try:
        learnt = held_out.which_of(files.names, metadata["trained_on"])
    except ValueError as error:
        raise ValueError(f"{net}: {error}") from None
    if learnt.size and learnt.all():
        raise ValueError(
            f"{folder}: {net} was trained on all {len(learnt):,} images in it, by their names; if they are others, "
            f"move its classes to {folder / 'test'}"
        )
    if not learnt.any():
        return files, str(folder)
    advice = f" (if they are others, move its classes to {folder / 'test'})"
    own = "dataset" in metadata and Path(metadata["dataset"]).resolve() == folder.resolve()
    left_out = f"its {learnt.sum():,} training images left out by their names{'' if own else advice}"
    return files.only(~learnt), f"{folder}, {left_out}"


def _record(
    options: Options,
    test: EvaluationSet,
    result: Result,
    robustness: "Robustness | None",
    expected: "Preprocessing",
) -> dict[str, Any]:
    count = int(result.images.sum())
    return {
        "net": str(options.net),
        "source": test.source,
        "images": count,
        "skipped": [str(error) for error in test.unreadable],
        "accuracy": result.accuracy,
        "accuracy_95": wilson_interval(int(result.correct.sum()), count),
        "loss": result.loss,
        "calibration_error": result.calibration.error,
        "calibration": {name: values.tolist() for name, values in result.calibration._asdict().items()},
        "robustness": robustness and {"accuracies": robustness.accuracies, "notes": robustness.notes},
        "classes": {
            name: {
                "images": int(images),
                "correct": int(correct),
                "accuracy_95": wilson_interval(int(correct), int(images)) if images else None,
            }
            for name, images, correct in zip(test.class_names, result.images, result.correct, strict=True)
        },
        "test_flip": options.test_flip,
        "image_size": expected.size,
        "mean": expected.mean,
        "std": expected.std,
        "images_per_second": result.images_per_second,
        "device": result.device,
    }


def _print(options: Options, test: EvaluationSet, result: Result, robustness: "Robustness | None") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    count = int(result.images.sum())
    low, high = wilson_interval(int(result.correct.sum()), count)
    flip = ", each also mirrored" if options.test_flip else ""
    calibrated = result.calibration
    lines = {
        "data": f"{test.source}: {count:,} test images{flip}",
        "accuracy": f"{result.accuracy:.2%}, 95 % interval {low:.2%} to {high:.2%}",
        "loss": f"{result.loss:.4f}, the negative log-likelihood",
        "calibration": f"{calibrated.error:.2%} expected error ({BINS} bins); over all images {calibrated.tendency}",
        "speed": f"{result.images_per_second:,.0f} images/s, without compiling, on {result.device}",
    }
    if robustness is not None:
        for name, accuracy in robustness.accuracies.items():
            lines[robustness.changes[name].words] = f"{accuracy:.2%}, {points(accuracy - result.accuracy)}"
    width = max(map(len, lines)) + 2
    for name, said in lines.items():
        print(f"{name:<{width}}{said}")
    for line in robustness.notes if robustness else ():
        print(line)
    table = Table("class", box=None, pad_edge=False)
    for heading in ("images", "correct", "accuracy", "95 % interval"):
        table.add_column(heading, justify="right")
    for name, images, correct in zip(test.class_names, result.images, result.correct, strict=True):
        accuracy, interval = "-", "-"
        if images:
            low, high = wilson_interval(int(correct), int(images))
            accuracy, interval = f"{correct / images:.2%}", f"{low:.2%} to {high:.2%}"
        table.add_row(Text(name), f"{images:,}", f"{correct:,}", accuracy, interval)
    Console(highlight=False).print(table)


def main() -> int:
    restart_with_fast_malloc()
    return run("flax-shufflenet evaluate", Options, evaluate)
