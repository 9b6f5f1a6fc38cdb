"""The training of train.py in PyTorch: ``python -m benchmarks.torch_train --net_size 0.5 --epochs 5``; ``--help``.

``torch_ref``'s net on the same images in the same order with the same augmentation, by the same recipe, channels_last,
with the same threads and allocator settings. What it writes is what train.py writes, so that
``flax-shufflenet compare`` reads both.
"""

import dataclasses
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from flax_shufflenet.commands.command_line import run
from flax_shufflenet.datasets.catalogue import default_data_dir
from flax_shufflenet.system import allocator
from flax_shufflenet.training.config import Config

if TYPE_CHECKING:
    import torch

    from flax_shufflenet.datasets.data import Dataset

NET_FILE = "net.pt"
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
class Options:
    """Trains torch_ref's ShuffleNetV2 in PyTorch, on the batches that train.py trains on, by the published recipe.

    Saves a state_dict as net.pt, with one line of JSON per epoch in metrics.jsonl. Of train.py's options these are
    the same.
    """

    net_size: float = 1.0
    dataset: str = "cifar10"
    data_dir: Path = dataclasses.field(default_factory=default_data_dir)
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    same_weights: bool = False
    """Start from the weights that train.py draws from the seed, rather than from PyTorch's own draw."""
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="(default: runs/torch_DATASET_NET_SIZE)")] = None
    """Folder for the results."""
    force: bool = False
    """Replace the results of an earlier run in OUT."""

    def config(self) -> Config:
        """The same run, as train.py's options.

        Raises:
            OptionError: a value out of its range.
        """
        out = self.out or Path("runs") / f"torch_{Path(self.dataset).name}_{self.net_size}"
        return Config(out=out, force=self.force, **{name: getattr(self, name) for name in _SHARED})


def train(options: Options) -> int:
    """Trains as the options say, and writes the results; returns 0.

    Raises:
        OptionError: a value out of its range.
        TrainingError: no data, a net already there, or a loss that is not finite.
        OSError: the results cannot be written.
    """
    config = options.config()
    allocator.restart_with_fast_malloc()
    # Imported here: JAX and PyTorch take seconds that --help and a mistyped option need not wait for.
    import torch

    from benchmarks.torch_training import Batches, Trainer, learning_rates, use_all_cores
    from flax_shufflenet.datasets import data
    from flax_shufflenet.errors import TrainingError
    from flax_shufflenet.runs.metrics import MetricsWriter
    from flax_shufflenet.runs.run import METRICS_FILE
    from flax_shufflenet.system import user_cache
    from flax_shufflenet.system.files import write_whole
    from flax_shufflenet.training.description import describe_run, epoch_line
    from flax_shufflenet.training.evaluation import evaluate_logits
    from flax_shufflenet.training.recipe import describe
    from flax_shufflenet.training.totals import EpochTotals

    out = config.out_dir
    if (out / NET_FILE).exists() and not config.force:
        raise TrainingError(f"{out / NET_FILE} exists: choose another --out, or replace it with --force")
    user_cache.keep_compiled_programs()
    dataset = data.load(config.dataset, config.data_dir)
    batches = Batches(config, dataset)
    total_steps = config.epochs * batches.steps_per_epoch
    rates = learning_rates(config, total_steps)
    threads = use_all_cores()
    trainer = Trainer(initial_net(config, dataset, same_weights=options.same_weights), config, rates)
    said = describe_run(config, dataset)
    versions = {**said["versions"], "torch": torch.__version__}
    said |= {"framework": "PyTorch", "device": "cpu", "platform": "cpu", "versions": versions}
    said["config"] = said["config"] | {"same_weights": options.same_weights}
    print(f"data    {dataset.name} from {dataset.source}")
    print(f"net     torch_ref.ShuffleNetV2 {config.net_size}, float32, PyTorch {torch.__version__}, {threads} threads")
    print(f"weights {'those of train.py' if options.same_weights else 'drawn by PyTorch'}, from seed {config.seed}")
    print(f"recipe  {describe(config, flip=dataset.flip)}\nresults {out}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    (out / NET_FILE).unlink(missing_ok=True)
    with MetricsWriter(out / METRICS_FILE, [said]) as metrics:
        for epoch in range(1, config.epochs + 1):
            totals = EpochTotals(config.batch_size, epoch, config.epochs)
            last = epoch * batches.steps_per_epoch
            for number in range(last - batches.steps_per_epoch + 1, last + 1):
                totals.add(number, trainer.step(number - 1, *batches[number - 1]))
            record, _ = totals.finish(
                last, float(rates[last - 1]), lambda: evaluate_logits(trainer.predict(dataset), dataset.test_labels)
            )
            metrics.write(record)
            print(epoch_line(record, config.epochs), flush=True)
    buffer = io.BytesIO()
    torch.save(trainer.net.state_dict(), buffer)
    write_whole(out / NET_FILE, buffer.getvalue())
    print(f"saved   {out / NET_FILE}")
    return 0


def initial_net(config: Config, dataset: "Dataset", *, same_weights: bool) -> "torch.nn.Module":
    """The seed's net with the initial weights that PyTorch, or with ``same_weights`` train.py, draws from the seed."""
    import torch

    import convert
    from flax_shufflenet.training.start import initial_model
    from torch_ref import ShuffleNetV2

    assert config.net_size is not None
    torch.manual_seed(config.seed)
    net = ShuffleNetV2(config.net_size, len(dataset.class_names))
    if same_weights:
        net.load_state_dict(convert.to_torch(initial_model(config, dataset, None)[0]))
    return net


if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.torch_train", Options, train, interrupted="interrupted, no net was saved"))
