"""How well running statistics tell what names and shapes leave open: ``python -m benchmarks.evidence``.

Trains small nets in PyTorch for a few hundred steps, on the handwritten digits and, with ``--data_dir``, on CIFAR-10,
and asks ``convert.evidence`` of each what it is. Nets without statistics of their own, fresh or random, must come out
undecided. Prints a table, and writes it with ``--json``.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it

import flax_shufflenet as fs
from benchmarks.report import installed_versions
from convert.evidence import statistics
from convert.evidence.choices import ACTIVATION, QUESTIONS, SHUFFLE, STEM, Question
from convert.evidence.images import Scale, weigh_input
from convert.evidence.statistics import Hypothesis
from flax_shufflenet.datasets import data
from flax_shufflenet.datasets.data import Dataset
from torch_ref.randomise import randomise


class Net(NamedTuple):
    """What to train: ``truth`` is which of the question's two graphs, 0 or 1; ``side`` that of its images, which are
    normalised, red first, or as ``scale`` and ``bgr`` say."""

    question: Question
    truth: int
    dataset: str
    side: int
    size: float = 0.5
    steps: int = 200
    seed: int = 0
    batch: int = 64
    scale: Scale = "normalised"
    bgr: bool = False


NETS = (
    *(Net(STEM, 0, name, 32, size) for name in ("digits", "cifar10") for size in (0.5, 1.0)),
    *(Net(STEM, 1, name, side) for name in ("digits", "cifar10") for side in (32, 64, 96)),
    Net(STEM, 1, "cifar10", 64, 1.0),
    *(Net(STEM, 0, "digits", 32, steps=steps, seed=1) for steps in (30, 1000)),
    *(Net(STEM, 1, "digits", 64, steps=steps, seed=1) for steps in (30, 1000)),
    *(Net(ACTIVATION, truth, name, 64) for truth in (0, 1) for name in ("digits", "cifar10")),
    # Images enlarged so far that a max-pool hardly changes them.
    *(
        Net(STEM, 1, name, side, steps=60, seed=7, batch=16)
        for side in (128, 224, 448)
        for name in ("digits", "cifar10")
    ),
    # These nets pool 7x7 values at their end, so that they take 224 pixels.
    *(Net(SHUFFLE, truth, name, 224, steps=40, batch=16) for truth in (0, 1) for name in ("digits", "cifar10")),
)
# Nets that take their images in each way.
INPUT_NETS = tuple(
    Net(STEM, truth, name, (32, 64)[truth], steps=100, seed=3, scale=scale, bgr=bgr)
    for truth in (0, 1)
    for scale in ("normalised", "0 to 1", "0 to 255")
    for name, bgr in (("digits", False), ("cifar10", False), ("cifar10", True))
)


def hypotheses(question: Question, size: float, classes: int) -> list[Hypothesis]:
    """The two graphs, for a net of the question's own layout; detectors' backbones and pytorchcv's net have no head."""
    family = next(name for name, other in QUESTIONS.items() if other is question)
    return list(question.hypotheses(fs.preset(family, size, classes if question is STEM else 0)).values())


def train(
    net: Net, dataset: Dataset, change: Callable[[torch.nn.Module], object] = lambda module: None
) -> dict[str, torch.Tensor]:
    """The state_dict after SGD with a cosine from 0.05 to 0, on random batches; ``change`` is made to the net first."""
    torch.manual_seed(net.seed)
    classes = len(dataset.class_names)
    hypothesis = hypotheses(net.question, net.size, classes)[net.truth]
    reference = hypothesis.layout.build_reference(hypothesis.architecture).train()
    change(reference)
    head = None
    if not hypothesis.architecture.num_classes:
        head = torch.nn.Linear(hypothesis.architecture.features_width, classes)
    parameters = [*reference.parameters(), *(head.parameters() if head else ())]
    optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, net.steps)
    mean, std = {
        "normalised": (dataset.mean, dataset.std),
        "0 to 1": ((0.0,) * 3, (1.0,) * 3),
        "0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    }[net.scale]
    mean, std = (np.asarray(values, np.float32) for values in (mean, std))
    random = np.random.default_rng(net.seed)
    for _ in range(net.steps):
        chosen = random.integers(0, len(dataset.train_labels), net.batch)
        images = (dataset.train_images[chosen].astype(np.float32) / 255 - mean) / std
        images = images[..., ::-1] if net.bgr else images
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        if net.side != x.shape[-1]:
            x = F.interpolate(x, size=(net.side, net.side), mode="bilinear", antialias=True)
        output = reference(x)
        scores = head(output) if head else output
        loss = F.cross_entropy(scores, torch.from_numpy(dataset.train_labels[chosen]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reference.state_dict()


def measure(data_dir: Path | None, *, inputs: bool) -> Iterator[dict[str, Any]]:
    """A row for each net that can be trained with what is there, then for nets that nobody trained; with ``inputs`` two
    rows for each net of ``INPUT_NETS``: of its graph, and of its images."""
    datasets = {"digits": data.load("digits", Path())}
    if data_dir is not None:
        datasets["cifar10"] = data.load("cifar10", data_dir)
    for net in INPUT_NETS if inputs else NETS:
        if net.dataset in datasets:
            trained = train(net, datasets[net.dataset])
            name = f"{net.dataset}, {net.side}x{net.side}, size {net.size}, {net.steps} steps"
            if inputs:
                name += f", {net.scale}, {'blue' if net.bgr else 'red'} first"
                yield _input_row(name, net, trained)
            yield _row(name, net.question, list(net.question.graphs)[net.truth], trained, net.size, 10)
    if inputs:
        return
    for question in QUESTIONS.values():
        first = hypotheses(question, 0.5, 10)[0]
        torch.manual_seed(0)
        fresh = first.layout.build_reference(first.architecture)
        yield _row("fresh", question, "undecided", fresh.state_dict(), 0.5, 10)
        for seed in range(5):
            yield _row(f"random, seed {seed}", question, "undecided", randomise(fresh, seed).state_dict(), 0.5, 10)


def _row(
    name: str, question: Question, truth: str, tensors: dict[str, torch.Tensor], size: float, classes: int
) -> dict[str, Any]:
    first, second = hypotheses(question, size, classes)
    found = statistics.weigh(first, second, tensors, question.where)
    says = None if found is None else found.says
    return {
        "question": " or ".join(question.graphs),
        "net": name,
        "truth": truth,
        "place": None if found is None else found.place,
        "explained": None if found is None else found.explained,
        "says": "undecided" if says is None else list(question.graphs)[says],
    }


def _input_row(name: str, net: Net, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the stem tells of the images' scale and of the order of colours, the latter where it can."""
    layout, architecture = hypotheses(net.question, net.size, 10)[net.truth]
    found = weigh_input(layout, architecture, tensors)
    assert found is not None
    truth = (net.scale, "bgr" if net.bgr else "rgb")
    return {
        "question": "input",
        "net": name,
        "truth": ", ".join(truth if found.order else truth[:1]),
        "mean": found.mean,
        "deviation": found.deviation,
        "explained": found.explained,
        "says": ", ".join(choice for choice in (found.scale, found.order) if choice) or "undecided",
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """As Markdown, with the counts below."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    def where(row: dict[str, Any]) -> str:
        if "mean" not in row:
            return number(row["place"])
        return f"means {', '.join(f'{mean:.2g}' for mean in row['mean'])}, deviation {row['deviation']:.2g}"

    lines = ["| question | net | truth | place | explained | says |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['question']} | {row['net']} | {row['truth']} | {where(row)} | {number(row['explained'])} | "
        f"{row['says']} |"
        for row in rows
    ]
    trained = [row for row in rows if row["truth"] != "undecided"]
    right = sum(row["says"] == row["truth"] for row in trained)
    undecided = sum(row["says"] == "undecided" for row in trained)
    untrained = [row for row in rows if row["truth"] == "undecided"]
    silent = sum(row["says"] == "undecided" for row in untrained)
    lines += [
        "",
        f"Of {len(trained)} trained nets {right} right, {len(trained) - right - undecided} wrong, "
        f"{undecided} undecided; of {len(untrained)} untrained ones {silent} undecided.",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--data_dir", type=Path, help="folder of TensorFlow Datasets, for CIFAR-10")
    parser.add_argument("--inputs", action="store_true", help="what nets tell of their images, instead of their graph")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for row in measure(arguments.data_dir, inputs=arguments.inputs):
        rows.append(row)
        print(row, flush=True)
        if arguments.json:
            found = {"versions": installed_versions(), "data_dir": bool(arguments.data_dir), "rows": rows}
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
