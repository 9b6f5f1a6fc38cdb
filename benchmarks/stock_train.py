"""The training of train.py with stock Flax layers: ``python -m benchmarks.stock_train --net_size 0.5 --epochs 5``.

``nnx.Conv``, ``nnx.BatchNorm`` and ``nnx.Linear`` from train.py's first weights, in train.py's own step and
evaluation: the layers are all that differs. What it writes is what train.py writes, so that
``flax-shufflenet compare`` reads both; ``--help`` lists the options.
"""

import dataclasses
import sys
from typing import IO, TYPE_CHECKING

from benchmarks import same_training
from flax_shufflenet.commands.command_line import run
from flax_shufflenet.system import allocator
from flax_shufflenet.training.config import Config

if TYPE_CHECKING:
    from flax_shufflenet.datasets.data import Dataset

NET_FILE = "net.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(same_training.SameOptions):
    """Trains a ShuffleNetV2 of stock Flax layers as train.py trains its own, by the published recipe.

    Saves its arrays as net.npz, with one line of JSON per epoch in metrics.jsonl. Of train.py's options most are the
    same.
    """


def train(options: Options) -> int:
    """Trains as the options say, and writes the results; returns 0.

    Raises:
        OptionError: a value out of its range.
    """
    config = options.config("stock_flax")
    return same_training.train(config, NET_FILE, lambda dataset: _prepare(config, dataset))


def _prepare(config: Config, dataset: "Dataset") -> same_training.Training:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.stock_flax import with_weights_of
    from flax_shufflenet.functional import split
    from flax_shufflenet.training.description import describe_run
    from flax_shufflenet.training.evaluation import make_evaluate, make_predict_of
    from flax_shufflenet.training.feed import ResidentFeed
    from flax_shufflenet.training.optimizer import make_optimizer, make_schedule
    from flax_shufflenet.training.start import initial_model
    from flax_shufflenet.training.step import (
        StepMetrics,
        initial_state,
        make_train_step,
    )

    allocator.begin_steps_one_by_one()
    model = with_weights_of(initial_model(config, dataset, None)[0])
    model.train()
    network, parameters, statistics = split(model)
    model.eval()
    steps_per_epoch = len(dataset.train_labels) // config.batch_size
    total_steps = config.epochs * steps_per_epoch
    optimizer, schedule = make_optimizer(config, total_steps), make_schedule(config, total_steps)
    feed = ResidentFeed(dataset, config, None)
    evaluate = make_evaluate(make_predict_of(split(model)[0], dataset, flip=False), dataset.test_labels)
    print(f"net     stock Flax layers, ShuffleNetV2 {config.net_size}, float32, JAX {jax.__version__}")
    state, order = initial_state(parameters, statistics, optimizer, averaged=False), None
    train_step = make_train_step(network, optimizer, config, dataset).lower(state, *feed.template()).compile()

    def step(number: int) -> StepMetrics:
        nonlocal state, order
        if (number - 1) % steps_per_epoch == 0:
            order = feed.order((number - 1) // steps_per_epoch + 1)
        state, metrics = train_step(state, *feed.arguments(order))
        return metrics

    def save_state(file: IO[bytes]) -> None:
        np.savez(file, *jax.tree.leaves(state))

    def load_state(file: IO[bytes]) -> None:
        nonlocal state
        with np.load(file) as arrays:
            leaves = [jnp.array(arrays[f"arr_{number}"]) for number in range(len(arrays.files))]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)

    return same_training.Training(
        describe_run(config, dataset) | {"framework": "stock Flax"},
        steps_per_epoch,
        learning_rate=lambda number: np.asarray(schedule(number - 1)).item(),
        step=step,
        evaluate=lambda: evaluate(state.parameters, state.statistics),
        save=lambda file: np.savez(file, *state.parameters, *state.statistics),
        save_state=save_state,
        load_state=load_state,
    )


if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.stock_train", Options, train, interrupted=same_training.INTERRUPTED))
