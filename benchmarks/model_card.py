"""The card of a net that comes with the package, from its file, its run's log, and what ``evaluate`` found."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import markdown
from benchmarks.tables.runs import command_options
from flax_shufflenet.functional import split
from flax_shufflenet.images.robustness import CHANGES
from flax_shufflenet.runs.calibration import BINS, Calibration
from flax_shufflenet.runs.run import Run, duration, percent, points, read_run, wilson_interval
from flax_shufflenet.shipped.nets import sha256
from flax_shufflenet.weights import load, read_metadata

EVALUATION_FILE = "evaluation.json"

# What the runs in results/ were trained on, by the dataset's name.
DATA = {
    "cifar10": (
        "CIFAR-10, 50,000 training and 10,000 test images of 32x32, 10 classes, **from a JPEG-compressed copy** (of "
        "quality about 75): labels and splits are CIFAR-10's, but pixels are lossy, in training and test images alike. "
        "What the net scores on the original pixels was not measured.\n\n"
        "CIFAR-10 states no licence; its author asks that [Learning Multiple Layers of Features from Tiny Images]"
        "(https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf) (Alex Krizhevsky, 2009) be cited. Its images "
        "were collected from the web; they are a labelled part of 80 Million Tiny Images, which its authors have "
        "withdrawn. No image is in the net's file."
    ),
}

LIMITS = (
    "- One run of one seed. The interval is of the test images alone; another seed moves the accuracy as well.",
    "- No epoch was picked by its test accuracy; but the recipe was, among a few, on these test images.",
    "- Measured on nothing but this test set; photographs of other sizes, stretched to 32x32, are another matter.",
    "- Every image is taken for one of the classes, whatever it shows, and often with high confidence.",
    "- An example, and a start for fine-tuning; not for decisions about people.",
)


def card(name: str, net_file: Path, log: Path) -> str:
    """The page, in Markdown; ``log`` is the run's folder in ``results/``, with ``EVALUATION_FILE`` in it."""
    run = read_run(log)
    found = json.loads((log / EVALUATION_FILE).read_text())
    lines = [
        f"# {name}",
        "",
        *_net(run, net_file, log),
        "",
        "## Data",
        "",
        DATA[run.options["dataset"]],
        "",
        "## What it is worth",
        "",
        *_worth(name, found),
        "",
        "## Limits",
        "",
        *LIMITS,
        "",
        "## Licence",
        "",
        "The weights: Apache-2.0, as the project. The data's terms are above.",
        "",
    ]
    return "\n".join(lines)


def _net(run: Run, net_file: Path, log: Path) -> list[str]:
    parameters = sum(array.size for array in split(load(net_file))[1])
    metadata = read_metadata(net_file)
    said = run.description
    classes = ", ".join(json.loads(metadata["class_names"]))
    mean, std = (" ".join(map(str, json.loads(metadata[key]))) for key in ("mean", "std"))
    rows = [
        ("net", f"ShuffleNetV2, size {run.options['net_size']}, {parameters:,} parameters, float32"),
        ("classes", classes),
        (
            "input",
            f"[N, 32, 32, 3], red, green, blue; values from 0 to 1, less {mean}, over {std}; `predict`, `evaluate` and "
            "`export` see to it",
        ),
        ("recipe", f"`python train.py {command_options(run)}`, seed {run.options['seed']}; the net of the last epoch"),
        ("log", f"{markdown.file(log)}: {len(run.epochs)} epochs, {duration(run.seconds)}, on {said['device']}"),
        ("versions", markdown.versions(said["versions"])),
        ("file", f"`{net_file.name}`, {net_file.stat().st_size:,} bytes, SHA-256 `{sha256(net_file)}`"),
    ]
    return [
        f'`fs.pretrained("{net_file.stem}")`; `predict`, `evaluate`, `export` and `train.py --init` take the name too. '
        "Written by `python -m benchmarks.ship` from what it names.",
        "",
        *markdown.table(["", ""], rows),
    ]


def _worth(name: str, found: dict[str, Any]) -> list[str]:
    low, high = found["accuracy_95"]
    calibration = Calibration(**{name: np.array(values) for name, values in found["calibration"].items()})
    rows = [
        ("accuracy", f"{percent(found['accuracy'])} (95 % Wilson interval {100 * low:.2f} to {100 * high:.2f})"),
        ("negative log-likelihood", f"{found['loss']:.4f}"),
        (
            "expected calibration error",
            f"{percent(found['calibration_error'])}, in {BINS} bins; over all images the net is {calibration.tendency}",
        ),
    ]
    for changed, accuracy in found["robustness"]["accuracies"].items():
        change = points(accuracy - found["accuracy"])
        rows.append((f"accuracy, {CHANGES[changed].words}", f"{percent(accuracy)} ({change})"))
    classes = [
        (
            one,
            f"{counts['images']:,}",
            percent(counts["correct"] / counts["images"], 1),
            "{:.1f} to {:.1f} %".format(*(100 * end for end in wilson_interval(counts["correct"], counts["images"]))),
        )
        for one, counts in found["classes"].items()
    ]
    return [
        f"On the {found['images']:,} test images, by `flax-shufflenet evaluate {name} --robustness`:",
        "",
        *markdown.table(["", ""], rows),
        "",
        *(f"- {note}" for note in found["robustness"]["notes"]),
        "",
        *markdown.table(["class", "images", "right", "95 % interval"], classes),
    ]
