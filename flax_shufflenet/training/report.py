"""One page on a finished run: report.md in its folder, and the pictures that it shows."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.errors import TrainingError, one_line
from flax_shufflenet.images.robustness import Robustness
from flax_shufflenet.runs import plots
from flax_shufflenet.runs.calibration import BINS, Calibration
from flax_shufflenet.runs.run import Run, duration, percent, points, read_run, wilson_interval
from flax_shufflenet.system.files import write_whole
from flax_shufflenet.training.judgement import Judgement, judge
from flax_shufflenet.training.run_folder import full_disk_is_one_line

REPORT_FILE = "report.md"
_CURVES_FILE, _CONFUSION_FILE, _HARDEST_FILE = "curves.png", "confusion.png", "hardest.png"
_RELIABILITY_FILE = "reliability.png"
REPORT_FILES = (REPORT_FILE, _CURVES_FILE, _CONFUSION_FILE, _HARDEST_FILE, _RELIABILITY_FILE)
_HARDEST_IMAGES = 24


def try_report(folder: Path, net_file: Path, dataset: AnyDataset, console: Console) -> None:
    """``write_report``, and a line that says where. A failure is one line too: the run itself is done and saved.

    Raises:
        TrainingError: no room is left for it.
    """
    try:
        with full_disk_is_one_line(folder, f"the report could not be made; the run is done and {net_file} saved"):
            page = write_report(folder, net_file, dataset)
    except TrainingError:
        raise
    except Exception as error:
        print(f"the report could not be made: {one_line(error)}", file=sys.stderr)
    else:
        console.print(f"report  {page}")


def write_report(folder: Path, net_file: Path, dataset: AnyDataset) -> Path:
    """Runs the net that a run has saved over the test set, and writes the page and its pictures to ``folder``.

    Returns:
        The page.

    Raises:
        RunError: ``folder`` has no metrics.jsonl of a run.
        OSError, ValueError: the net cannot be read, or the folder not be written.
    """
    run = read_run(folder)
    judged = judge(net_file, dataset, dtype=run.options["dtype"], test_flip=run.options.get("test_flip", False))
    title = f"{_net(run)} on {dataset.name}"
    write_whole(folder / _CURVES_FILE, plots.curves(run, title))
    per_cent = "per cent of each true class" if len(dataset.class_names) <= plots.NUMBERED_CLASSES else "by class"
    write_whole(
        folder / _CONFUSION_FILE,
        plots.confusion(judged.counts, dataset.class_names, f"{title}: test images, {per_cent}"),
    )
    write_whole(folder / _RELIABILITY_FILE, plots.reliability(judged.calibration, title))
    pictures = _hardest_images(judged, dataset)
    if pictures:
        sheet = plots.hardest(pictures, f"{title}: the hardest test images")
        write_whole(folder / _HARDEST_FILE, sheet)
    page = "\n".join(_page(title, run, dataset, judged, hardest=len(pictures)))
    # Paths among the options may have bytes in their names that are no UTF-8.
    write_whole(folder / REPORT_FILE, page.encode("utf-8", "backslashreplace"))
    return folder / REPORT_FILE


def _hardest_images(judged: Judgement, dataset: AnyDataset) -> list[plots.HardImage]:
    """Those wrongly classified to whose true class the net gives the least probability, the worst first."""
    of_truth = judged.log_probabilities[np.arange(len(dataset.test_labels)), dataset.test_labels]
    wrong = np.flatnonzero(judged.predicted != dataset.test_labels)
    worst = wrong[np.argsort(of_truth[wrong], kind="stable")][:_HARDEST_IMAGES]
    return [
        plots.HardImage(
            dataset.test_image(index),
            dataset.class_names[dataset.test_labels[index]],
            dataset.class_names[judged.predicted[index]],
            float(np.exp(judged.log_probabilities[index, judged.predicted[index]])),
        )
        for index in worst.tolist()
    ]


# --- the page


def _net(run: Run) -> str:
    # None where the net to start from had its own; runs of earlier versions say nothing of a family.
    size, family = run.options["net_size"], run.options.get("family")
    return f"ShuffleNetV2{f' {size}' if size else ''}{f' as in {family}' if family else ''}"


def _page(title: str, run: Run, dataset: AnyDataset, judged: Judgement, *, hardest: int) -> list[str]:
    right, count = int(np.trace(judged.counts)), len(dataset.test_labels)
    lines = [
        f"# {title}",
        "",
        f"**{percent(right / count)}** of the {count:,} test images are classified correctly "
        f"(95 % interval {_interval(right, count)}) after {_counted(len(run.epochs), 'epoch')}.",
        "",
        "## Figures",
        "",
        *_table(("", ""), _figures(run, dataset, judged)),
        "",
        f"![Loss, accuracy and learning rate over the epochs]({_CURVES_FILE})",
        "",
        "## What ran",
        "",
        *_table(("", ""), _circumstances(run, dataset, judged.parameters)),
        "",
        *_table(("option", "value"), [(f"`{name}`", f"`{value}`") for name, value in run.options.items()]),
        "",
        "## Classes",
        "",
        *_table(("class", "images", "right", "95 % interval", "most often taken for"), _classes(judged, dataset)),
        "",
        f"![Confusion matrix of the test set]({_CONFUSION_FILE})",
        "",
        "## Calibration",
        "",
        *_calibration(judged.calibration),
        "",
        f"![Reliability diagram of the test set]({_RELIABILITY_FILE})",
        "",
        "## Robustness",
        "",
        *_robustness(judged.robustness, right / count),
        "",
    ]
    if hardest:
        lines += [
            "## The hardest test images",
            "",
            f"The {_counted(hardest, 'image')} to whose true class the net gives the least probability, of those that "
            "it gets wrong, the worst first: above what it is, below what the net takes it for, and how sure it is.",
            "",
            f"![The hardest test images]({_HARDEST_FILE})",
            "",
        ]
    return lines


def _figures(run: Run, dataset: AnyDataset, judged: Judgement) -> list[tuple[str, str]]:
    right, count = int(np.trace(judged.counts)), len(dataset.test_labels)
    likelihood = judged.log_probabilities[np.arange(count), dataset.test_labels].mean()
    last, best = run.last, run.best
    assert last is not None  # a run that has saved a net has done an epoch
    assert best is not None
    rows = [
        ("test accuracy, saved net", f"{percent(right / count)} (95 % Wilson interval {_interval(right, count)})"),
        (
            "test accuracy, best epoch",
            f"{percent(best['test_accuracy'])} (95 % Wilson interval "
            f"{_interval(round(best['test_accuracy'] * count), count)}) after epoch {best['epoch']}; picked on the "
            "test images themselves, so it flatters",
        ),
        ("negative log-likelihood, saved net", f"{-likelihood:.4f}"),
        (
            "expected calibration error, saved net",
            f"{percent(judged.calibration.error)}, in {BINS} bins ([Calibration](#calibration))",
        ),
        ("loss, last epoch", f"train {_number(last['train_loss'])}, test {_number(last['test_loss'])}"),
        ("train accuracy, last epoch", f"{percent(last['train_accuracy'])}, of augmented images while the net changes"),
        ("wall time of the epochs", f"{duration(run.seconds)}, testing included, compilation not"),
        ("speed of training", f"{run.images_per_second:,.0f} images/s, median of the epochs"),
    ]
    if last.get("raw_test_accuracy") is not None:
        rows.insert(2, ("test accuracy, weights not averaged", f"{percent(last['raw_test_accuracy'])}, last epoch"))
    return rows


def _circumstances(run: Run, dataset: AnyDataset, parameters: int) -> list[tuple[str, str]]:
    said = run.description
    versions = ", ".join(f"{name} {number}" for name, number in said["versions"].items())
    return [
        ("net", f"{_net(run)}, {parameters:,} parameters, {run.options['dtype']}"),
        (
            "data",
            f"{dataset.name} from {said['source']}: {said['train_images']:,} training and {said['test_images']:,} test "
            f"images, {len(dataset.class_names)} classes",
        ),
        ("device", said["device"] if said["device"] == said["platform"] else f"{said['device']} ({said['platform']})"),
        ("versions", versions),
    ]


def _classes(judged: Judgement, dataset: AnyDataset) -> list[tuple[str, ...]]:
    """The worst class first."""
    rows: list[tuple[str, ...]] = []
    totals, rights = judged.counts.sum(axis=1), np.diag(judged.counts)
    for index in np.argsort(rights / np.maximum(totals, 1), kind="stable"):
        total, right = int(totals[index]), int(rights[index])
        wrong = judged.counts[index].copy()
        wrong[index] = 0
        other = int(wrong.argmax())
        confused = f"{dataset.class_names[other]} ({wrong[other]})" if wrong[other] else ""
        share = percent(right / total, 1) if total else ""
        rows.append((dataset.class_names[index], f"{total:,}", share, _interval(right, total), confused))
    return rows


def _calibration(found: Calibration) -> list[str]:
    return [
        f"How sure the net is of its class and how often it is right are **{100 * found.error:.2f} points** apart: the "
        f"expected calibration error, in {BINS} bins of equal width (Guo et al. 2017). Over all images the net is "
        f"{found.tendency}."
    ]


def _robustness(found: Robustness, unchanged: float) -> list[str]:
    rows = [("as they are", percent(unchanged), "")]
    for name, accuracy in found.accuracies.items():
        rows.append((found.changes[name].words, percent(accuracy), points(accuracy - unchanged)))
    return [*_table(("test images", "accuracy", "change"), rows), "", *(f"- {note}" for note in found.notes)]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _interval(right: int, count: int) -> str:
    low, high = wilson_interval(right, count)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
