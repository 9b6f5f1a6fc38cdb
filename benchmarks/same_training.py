"""The training of train.py with another net: the same options, and the same files, which ``flax-shufflenet compare``
reads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import arg

from flax_shufflenet.datasets.catalogue import default_data_dir
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.system import allocator
from flax_shufflenet.training.config import Config

if TYPE_CHECKING:
    from flax_shufflenet.datasets.data import Dataset
    from flax_shufflenet.training.evaluation import Evaluation
    from flax_shufflenet.training.step import StepMetrics

_STATE_FILE = "epoch_{}.state"  # by the number of epochs done
INTERRUPTED = "interrupted: the same command goes on after the last whole epoch"
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


class Training(NamedTuple):
    """What another net brings to a run. Steps are counted from 1."""

    said: dict[str, Any]
    """The first line of metrics.jsonl."""
    steps_per_epoch: int
    learning_rate: Callable[[int], float]
    """Of one step."""
    step: "Callable[[int], StepMetrics]"
    """Does one step."""
    evaluate: "Callable[[], Evaluation]"
    save: Callable[[IO[bytes]], None]
    """Writes the net's file."""
    save_state: Callable[[IO[bytes]], None]
    """Writes all that a step changes, from which ``load_state`` goes on."""
    load_state: Callable[[IO[bytes]], None]


def train(config: Config, net_file: str, prepare: "Callable[[Dataset], Training]") -> int:
    """Trains as train.py would, and writes metrics.jsonl and ``net_file`` to the run's folder; returns 0.

    ``prepare`` makes the net for the images, and prints what it is. A run that was interrupted is gone on with after
    its last whole epoch.

    Raises:
        TrainingError: no data, or a net or the unfinished run of other options already there.
        FloatingPointError: a loss is not finite.
        OSError: the results cannot be written.
    """
    allocator.restart_with_fast_malloc()
    # Imported here: JAX takes a second that --help and a mistyped option need not wait for.
    from flax_shufflenet.datasets import data
    from flax_shufflenet.runs.metrics import MetricsWriter
    from flax_shufflenet.runs.run import METRICS_FILE
    from flax_shufflenet.system import user_cache
    from flax_shufflenet.system.files import open_whole
    from flax_shufflenet.training.description import epoch_line
    from flax_shufflenet.training.recipe import describe
    from flax_shufflenet.training.totals import EpochTotals

    out = config.out_dir
    net = out / net_file
    if net.exists() and not config.force:
        raise TrainingError(f"{net} exists: choose another --out, or replace it with --force")
    user_cache.keep_compiled_programs()
    dataset = data.load(config.dataset, config.data_dir)
    print(f"data    {dataset.name} from {dataset.source}")
    training = prepare(dataset)
    print(f"recipe  {describe(config, flip=dataset.flip)}\nresults {out}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    net.unlink(missing_ok=True)
    if config.force:
        _remove_states(out)
    done, records = _go_on(out, training)
    with MetricsWriter(out / METRICS_FILE, [training.said, *records]) as metrics:
        for epoch in range(done + 1, config.epochs + 1):
            totals = EpochTotals(config.batch_size, epoch, config.epochs)
            last = epoch * training.steps_per_epoch
            for number in range(last - training.steps_per_epoch + 1, last + 1):
                totals.add(number, training.step(number))
            record, _ = totals.finish(last, training.learning_rate(last), training.evaluate)
            metrics.write(record)
            print(epoch_line(record, config.epochs), flush=True)
            with open_whole(out / _STATE_FILE.format(epoch)) as file:
                training.save_state(file)
            (out / _STATE_FILE.format(epoch - 1)).unlink(missing_ok=True)
    with open_whole(net) as file:
        training.save(file)
    _remove_states(out)
    print(f"saved   {net}")
    return 0


def _states(out: Path) -> dict[int, Path]:
    """Each state in a run's folder, by the number of epochs done."""
    return {int(path.stem.removeprefix("epoch_")): path for path in out.glob(_STATE_FILE.format("*"))}


def _remove_states(out: Path) -> None:
    for path in _states(out).values():
        path.unlink()


def _go_on(out: Path, training: Training) -> tuple[int, list[dict[str, Any]]]:
    """Loads the newest state in ``out``; returns how many epochs are done, and their records.

    Raises:
        TrainingError: it is that of a run of other options.
    """
    from flax_shufflenet.runs.run import read_run
    from flax_shufflenet.training.identity import deciding_options

    states = _states(out)
    if not states:
        return 0, []
    run, done = read_run(out), max(states)
    if deciding_options(run.options) != deciding_options(training.said["config"]):
        raise TrainingError(
            f"the unfinished run in {out} was started with other options: choose another --out, or start anew with "
            "--force"
        )
    with states[done].open("rb") as file:
        training.load_state(file)
    print(f"resume  {states[done]}", flush=True)
    return done, run.epochs[:done]
