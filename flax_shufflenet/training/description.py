"""What a run says of itself: on the screen, in the first line of its metrics, and in the net's file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from flax_shufflenet import ops
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.system.versions import versions
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.evaluation import Evaluation
from flax_shufflenet.training.recipe import describe

_PACKAGES = ("flax-shufflenet", "jax", "jaxlib", "flax", "optax", "numpy")

_WIDTH_WITH_BAR = 110  # characters; the figures come first


def progress_bar(console: Console) -> Progress:
    """Shown on a terminal only; a log file gets the epochs' lines alone.

    A task counts the steps of the whole run. Its fields are ``figures``, a text, and ``best``, the best test accuracy.
    """
    bar = [BarColumn(20)] if console.width >= _WIDTH_WITH_BAR else []
    columns = (TextColumn("{task.fields[figures]}"), _Best(), *bar, TimeRemainingColumn(), TextColumn("left"))
    # The speed is taken over minutes, so that the time left has the tests between the epochs in it.
    return Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=600.0
    )


class _Best(ProgressColumn):
    def render(self, task: Task) -> Text:
        best = task.fields["best"]
        return Text(f" best {best:.1%} " if math.isfinite(best) else "", no_wrap=True)


def epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    """An epoch's record as one line for people."""
    raw = f" (not averaged {record['raw_test_accuracy']:.2%})" if "raw_test_accuracy" in record else ""
    return (
        f"epoch {record['epoch']:{len(str(epochs))}}/{epochs}  "
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:6.2%}  "
        f"test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:6.2%}{raw}  "
        f"{record['images_per_second']:,.0f} images/s  {record['seconds']:.0f} s"
    )


class StartLines(NamedTuple):
    """For people: the pipeline and why it is that, the net, and whose input is assumed where the net to start from does
    not say; empty where nothing is."""

    pipeline: str
    net: str
    assumed: str


def print_start(console: Console, config: Config, dataset: AnyDataset, said: StartLines) -> None:
    """The data, how the net gets it, the net, the recipe and the folder."""
    side, assumed = dataset.image_size, said.assumed
    console.print(
        f"data    {dataset.name} from {dataset.source}: {len(dataset.train_labels):,} training and "
        f"{len(dataset.test_labels):,} test images of {side}x{side}, {len(dataset.class_names)} classes"
    )
    console.print(f"images  {said.pipeline}")
    console.print(f"input   {_input(dataset)}{f' (assumed, {config.init} does not say: {assumed})' if assumed else ''}")
    console.print(f"net     {said.net}, {config.dtype}, on {_where()}")
    if why := _missing_engine():
        console.print(f"engine  {why}")
    console.print(
        f"recipe  {describe(config, flip=dataset.flip, resized=dataset.short_side is not None)}, seed {config.seed}"
    )
    console.print(f"results {config.out_dir}")


def _input(dataset: AnyDataset) -> str:
    order = "blue, green, red" if dataset.bgr else "red, green, blue"
    if not any(dataset.mean) and len(set(dataset.std)) == 1:
        return f"{order}, values from 0 to {1 / dataset.std[0]:.4g}"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (dataset.mean, dataset.std))
    return f"{order}, values from 0 to 1 less {mean}, over {std}"


def _missing_engine() -> str:
    """Why a run on CPU has to do without the CPU engine, and what helps; empty where it has it."""
    if jax.default_backend() != "cpu" or ops.info().engine:
        return ""
    return (
        f"the CPU engine is missing ({ops.info().why}), and training takes half as long again; with a C++ compiler, "
        "install this package again"
    )


def _engine() -> str:
    """The instructions that the CPU engine was built for; "none" where XLA's own operations compute."""
    return ops.info().instructions if jax.default_backend() == "cpu" and ops.info().engine else "none"


def _where() -> str:
    first, count, processes = jax.devices()[0], jax.device_count(), jax.process_count()
    if count == 1:
        return f"{first.device_kind} ({first})"
    return f"{count} devices ({first.device_kind})" + (f" of {processes} processes" if processes > 1 else "")


def describe_run(config: Config, dataset: AnyDataset) -> dict[str, Any]:
    """The first line of the metrics."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
    return {
        "config": options | {"out": str(config.out_dir)},
        "source": dataset.source,
        "pipeline": dataset.pipeline,
        "train_images": len(dataset.train_labels),
        "test_images": len(dataset.test_labels),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": jax.default_backend(),
        "engine": _engine(),
        "versions": versions(*_PACKAGES),
    }


def net_metadata(config: Config, dataset: AnyDataset, evaluation: Evaluation, epochs: int) -> dict[str, str]:
    """What is kept beside the weights of a net that was trained for ``epochs`` epochs."""
    return {
        "dataset": dataset.name,
        "image_size": json.dumps(dataset.image_size),
        **({"short_side": json.dumps(dataset.short_side)} if dataset.short_side else {}),
        "class_names": json.dumps(dataset.class_names),
        "mean": json.dumps(dataset.mean),
        "std": json.dumps(dataset.std),
        "channel_order": json.dumps("bgr" if dataset.bgr else "rgb"),
        "test_accuracy": str(evaluation.accuracy),
        "flip": json.dumps(dataset.flip),
        "test_flip": json.dumps(config.test_flip),
        "epochs": str(epochs),
        "versions": json.dumps(versions(*_PACKAGES)),
        **({"test_share": json.dumps(config.test_share)} if config.test_share else {}),
        **({"trained_on": dataset.trained_on} if dataset.trained_on else {}),
    }
