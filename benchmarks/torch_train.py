"""The training of train.py in PyTorch: ``python -m benchmarks.torch_train --net_size 0.5 --epochs 5``; ``--help``.

``torch_ref``'s net on the same images in the same order with the same augmentation, by the same recipe, channels_last,
with the same threads and allocator settings. What it writes is what train.py writes, so that
``flax-shufflenet compare`` reads both.
"""

import dataclasses
import sys
from typing import TYPE_CHECKING

from benchmarks import same_training
from flax_shufflenet.commands.command_line import run
from flax_shufflenet.training.config import Config

if TYPE_CHECKING:
    import torch

    from flax_shufflenet.datasets.data import Dataset

NET_FILE = "net.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(same_training.SameOptions):
    """Trains torch_ref's ShuffleNetV2 in PyTorch, on the batches that train.py trains on, by the published recipe.

    Saves a state_dict as net.pt, with one line of JSON per epoch in metrics.jsonl. Of train.py's options most are the
    same.
    """

    same_weights: bool = False
    """Start from the weights that train.py draws from the seed, rather than from PyTorch's own draw."""


def train(options: Options) -> int:
    """Trains as the options say, and writes the results; returns 0.

    Raises:
        OptionError: a value out of its range.
    """
    config = options.config("torch")
    return same_training.train(config, NET_FILE, lambda dataset: _prepare(options, config, dataset))


def _prepare(options: Options, config: Config, dataset: "Dataset") -> same_training.Training:
    import torch

    from benchmarks.torch_training import Batches, Trainer, learning_rates, use_all_cores
    from flax_shufflenet.training.description import describe_run
    from flax_shufflenet.training.evaluation import evaluate_logits

    batches = Batches(config, dataset)
    rates = learning_rates(config, config.epochs * batches.steps_per_epoch)
    threads = use_all_cores()
    trainer = Trainer(initial_net(config, dataset, same_weights=options.same_weights), config, rates)
    said = describe_run(config, dataset)
    versions = {**said["versions"], "torch": torch.__version__}
    said |= {"framework": "PyTorch", "device": "cpu", "platform": "cpu", "versions": versions}
    said["config"] = said["config"] | {"same_weights": options.same_weights}
    print(f"net     torch_ref.ShuffleNetV2 {config.net_size}, float32, PyTorch {torch.__version__}, {threads} threads")
    print(f"weights {'those of train.py' if options.same_weights else 'drawn by PyTorch'}, from seed {config.seed}")
    return same_training.Training(
        said,
        batches.steps_per_epoch,
        learning_rate=lambda number: float(rates[number - 1]),
        step=lambda number: trainer.step(number - 1, *batches[number - 1]),
        evaluate=lambda: evaluate_logits(trainer.predict(dataset), dataset.test_labels),
        save=lambda file: torch.save(trainer.net.state_dict(), file),
        save_state=trainer.save_state,
        load_state=trainer.load_state,
    )


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
    sys.exit(run("python -m benchmarks.torch_train", Options, train, interrupted=same_training.INTERRUPTED))
