"""The training of train.py with another net: the same options, and the same files, which ``flax-shufflenet compare``
reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from flax_shufflenet.datasets.catalogue import default_data_dir
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.training.config import Config

if TYPE_CHECKING:
    from flax_shufflenet.datasets.data import Dataset
    from flax_shufflenet.training.evaluation import Evaluation
    from flax_shufflenet.training.step import StepMetrics

_SHARED = (
    "net_size",
    "dataset",
    "data_dir",
    "epochs",
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "seed",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameOptions:
    """Of train.py's options these are the same."""

    net_size: float = 1.0
    dataset: str = "cifar10"
    data_dir: Path = dataclasses.field(default_factory=default_data_dir)
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: runs/OTHER_DATASET_NET_SIZE)")] = None
    """Folder for the results."""
    force: bool = False
    """Replace the results of an earlier run in OUT."""

    def config(self, other: str) -> Config:
        """The same run, as train.py's options; ``other`` is what trains, for the folder's name.

        Raises:
            OptionError: a value out of its range.
        """
        out = self.out or Path("runs") / f"{other}_{Path(self.dataset).name}_{self.net_size}"
        return Config(out=out, force=self.force, **{name: getattr(self, name) for name in _SHARED})


def check_is_new(config: Config, net_file: str) -> None:
    """Raises:
    TrainingError: there is a finished run, which is not to be replaced.
    """
    path = config.out_dir / net_file
    if path.exists() and not config.force:
        raise TrainingError(f"{path} exists: choose another --out, or replace it with --force")


def write_run(
    config: Config,
    dataset: "Dataset",
    said: dict[str, Any],
    *,
    steps_per_epoch: int,
    learning_rate: Callable[[int], float],
    step: "Callable[[int], StepMetrics]",
    evaluate: "Callable[[], Evaluation]",
) -> None:
    """Trains, and writes metrics.jsonl; ``said`` is its first line.

    ``step`` does one and ``learning_rate`` tells that of one; steps are counted from 1.

    Raises:
        FloatingPointError: a loss is not finite.
        OSError: the results cannot be written.
    """
    # Imported here: JAX takes a second that --help and a mistyped option need not wait for.
    from flax_shufflenet.runs.metrics import MetricsWriter
    from flax_shufflenet.runs.run import METRICS_FILE
    from flax_shufflenet.training.description import epoch_line
    from flax_shufflenet.training.recipe import describe
    from flax_shufflenet.training.totals import EpochTotals

    print(f"recipe  {describe(config, flip=dataset.flip)}\nresults {config.out_dir}", flush=True)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    with MetricsWriter(config.out_dir / METRICS_FILE, [said]) as metrics:
        for epoch in range(1, config.epochs + 1):
            totals = EpochTotals(config.batch_size, epoch, config.epochs)
            last = epoch * steps_per_epoch
            for number in range(last - steps_per_epoch + 1, last + 1):
                totals.add(number, step(number))
            record, _ = totals.finish(last, learning_rate(last), evaluate)
            metrics.write(record)
            print(epoch_line(record, config.epochs), flush=True)
