"""A training run from start to end: data, net, epochs, the saved net."""

import collections
import dataclasses
import importlib.metadata
import json
import math
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flax_shufflenet.functional import split
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.training import data, user_cache
from flax_shufflenet.training.config import Config, OptionError, TrainingError
from flax_shufflenet.training.data import Dataset
from flax_shufflenet.training.evaluation import Evaluation, make_evaluate
from flax_shufflenet.training.metrics import MetricsWriter
from flax_shufflenet.training.recipe import describe
from flax_shufflenet.training.report import try_report
from flax_shufflenet.training.runs import METRICS_FILE
from flax_shufflenet.training.start import initial_model
from flax_shufflenet.training.step import (
    StepMetrics,
    epoch_order,
    final_arrays,
    initial_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from flax_shufflenet.weights import save

NET_FILE = "net.safetensors"

# Metrics are fetched this many steps late, so that the device always has the next steps at hand.
_STEPS_AHEAD = 4


def train(config: Config) -> Evaluation:
    """Trains a net as ``config`` says, and saves it with its figures in ``config.out_dir``; returns its test result.

    Raises:
        OptionError: a batch larger than the training set, or a size that the net to start from does not have.
        TrainingError: no data, no net to start from, a net already in ``config.out_dir``, or a loss that is not finite.
        OSError: the results cannot be written.
    """
    if not config.no_compilation_cache:
        user_cache.keep_compiled_programs()
    console = Console(highlight=False, soft_wrap=True)
    out_dir = config.out_dir
    if (out_dir / NET_FILE).exists() and not config.force:
        raise TrainingError(f"{out_dir / NET_FILE} exists: choose another --out, or replace it with --force")
    dataset = data.load(config.dataset, config.data_dir, image_size=config.image_size or 32)
    dataset = dataclasses.replace(dataset, flip=dataset.flip and not config.no_flip)
    count = len(dataset.train_labels)
    if config.batch_size > count:
        raise OptionError(
            f"--batch_size must be at most {count}, the size of {config.dataset}, not {config.batch_size}"
        )
    model, net = initial_model(config, dataset)
    out_dir.mkdir(parents=True, exist_ok=True)
    with MetricsWriter(out_dir / METRICS_FILE) as metrics:
        metrics.write(_describe_run(config, dataset))
        _print_start(console, config, dataset, net)
        model, evaluation = _run(model, config, dataset, metrics, console)
    save(model, out_dir / NET_FILE, _net_metadata(config, dataset, evaluation))
    console.print(f"saved   {out_dir / NET_FILE}, test accuracy {evaluation.accuracy:.2%}")
    try_report(out_dir, out_dir / NET_FILE, dataset, console)
    return evaluation


def _run(
    model: ShuffleNetV2, config: Config, dataset: Dataset, metrics: MetricsWriter, console: Console
) -> tuple[ShuffleNetV2, Evaluation]:
    count = len(dataset.train_labels)
    steps_per_epoch = count // config.batch_size
    total_steps = config.epochs * steps_per_epoch

    network, parameters, statistics = split(model)
    model.eval()
    eval_network, _, _ = split(model)
    optimizer = make_optimizer(config, total_steps)
    schedule = make_schedule(config, total_steps)
    state = initial_state(parameters, statistics, optimizer, averaged=config.ema > 0)

    images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
    evaluate = make_evaluate(
        eval_network,
        jnp.asarray(dataset.test_images),
        dataset.test_labels,
        mean=dataset.mean,
        std=dataset.std,
        flip=config.test_flip,
    )
    train_step = make_train_step(network, optimizer, config, dataset)

    # Compiled ahead, so that the first epoch's images per second are those of the others.
    console.print("compiling the train step")
    train_step = train_step.lower(state, images, labels, epoch_order(config.seed, 0, count)).compile()

    evaluation = Evaluation(math.nan, 0.0)
    with _progress_bar(console) as progress:
        bar = progress.add_task("", total=total_steps, figures="first step")
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            order = epoch_order(config.seed, epoch - 1, count)
            totals = _Totals(config.batch_size, epoch, config.epochs)
            pending = collections.deque()
            for number in range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1):
                state, step_metrics = train_step(state, images, labels, order)
                pending.append((number, step_metrics))
                if len(pending) > _STEPS_AHEAD:
                    totals.add(*pending.popleft())
                    progress.update(bar, advance=1, figures=totals.figures())
            while pending:
                totals.add(*pending.popleft())
                progress.update(bar, advance=1, figures=totals.figures())
            images_per_second = totals.images_per_second()
            evaluation = evaluate(*final_arrays(state))
            record = {
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "learning_rate": float(jnp.asarray(schedule(epoch * steps_per_epoch - 1))),
                "train_loss": totals.loss,
                "train_accuracy": totals.accuracy,
                "test_loss": evaluation.loss,
                "test_accuracy": evaluation.accuracy,
                "images_per_second": images_per_second,
                "seconds": time.perf_counter() - started,
            }
            if config.ema:
                raw = evaluate(state.parameters, state.statistics)
                record |= {"raw_test_loss": raw.loss, "raw_test_accuracy": raw.accuracy}
            metrics.write(record)
            progress.console.print(_epoch_line(record, config.epochs))
    trained = eval_network.model(*final_arrays(state))
    assert isinstance(trained, ShuffleNetV2)
    return trained, evaluation


class _Totals:
    """Sums over the steps of one epoch."""

    def __init__(self, batch_size: int, epoch: int, epochs: int) -> None:
        self._batch_size = batch_size
        self._title = f"epoch {epoch}/{epochs}"
        self._started = time.perf_counter()
        self._steps = 0
        self._loss = 0.0
        self._correct = 0

    def add(self, number: int, metrics: StepMetrics) -> None:
        """Waits for a step, and adds its figures.

        Raises:
            TrainingError: its loss is not finite.
        """
        loss, correct = jax.device_get(metrics)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {number} ({self._title}): try a smaller --learning_rate")
        self._steps += 1
        self._loss += float(loss)
        self._correct += int(correct)

    @property
    def loss(self) -> float:
        return self._loss / self._steps

    @property
    def accuracy(self) -> float:
        return self._correct / (self._steps * self._batch_size)

    def images_per_second(self) -> float:
        return self._steps * self._batch_size / (time.perf_counter() - self._started)

    def figures(self) -> str:
        """For the progress bar."""
        return (
            f"{self._title}  loss {self.loss:.3f}  accuracy {self.accuracy:.1%}  "
            f"{self.images_per_second():,.0f} images/s"
        )


def _progress_bar(console: Console) -> Progress:
    """Shown on a terminal only; a log file gets the epochs' lines alone."""
    columns = (TextColumn("{task.fields[figures]}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _epoch_line(record: dict[str, float], epochs: int) -> str:
    raw = f" (not averaged {record['raw_test_accuracy']:.2%})" if "raw_test_accuracy" in record else ""
    return (
        f"epoch {record['epoch']:{len(str(epochs))}}/{epochs}  "
        f"train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:6.2%}  "
        f"test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:6.2%}{raw}  "
        f"{record['images_per_second']:,.0f} images/s  {record['seconds']:.0f} s"
    )


def _print_start(console: Console, config: Config, dataset: Dataset, net: str) -> None:
    devices, side = jax.devices(), dataset.train_images.shape[1]
    console.print(
        f"data    {dataset.name} from {dataset.source}: {len(dataset.train_labels):,} training and "
        f"{len(dataset.test_labels):,} test images of {side}x{side}, {len(dataset.class_names)} classes"
    )
    console.print(f"net     {net}, {config.dtype}, on {devices[0].device_kind} ({devices[0]})")
    console.print(f"recipe  {describe(config, flip=dataset.flip)}, seed {config.seed}")
    console.print(f"results {config.out_dir}")


def _versions() -> dict[str, str]:
    packages = ("flax-shufflenet", "jax", "jaxlib", "flax", "optax", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _describe_run(config: Config, dataset: Dataset) -> dict[str, object]:
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
    return {
        "config": options | {"out": str(config.out_dir)},
        "source": dataset.source,
        "train_images": len(dataset.train_labels),
        "test_images": len(dataset.test_labels),
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "versions": _versions(),
    }


def _net_metadata(config: Config, dataset: Dataset, evaluation: Evaluation) -> dict[str, str]:
    return {
        "dataset": dataset.name,
        "image_size": json.dumps(dataset.train_images.shape[1]),
        "class_names": json.dumps(dataset.class_names),
        "mean": json.dumps(dataset.mean),
        "std": json.dumps(dataset.std),
        "test_accuracy": str(evaluation.accuracy),
        "test_flip": json.dumps(config.test_flip),
        "epochs": str(config.epochs),
        "versions": json.dumps(_versions()),
    }
