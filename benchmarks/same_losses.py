"""The same training in both frameworks, loss for loss: ``python -m benchmarks.same_losses``; ``--help`` has options.

Both start from the same weights and get the same augmented batches; the recipe is train.py's. Training multiplies any
difference, rounding included, so that at some step the losses part, however right both are. How soon that is for
rounding alone is seen in a third run: PyTorch again, each of its first weights moved by one rounding.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import torch
from flax import nnx

import flax_shufflenet as fs
from benchmarks.report import installed_versions
from benchmarks.torch_training import Batches, Trainer, learning_rates, use_all_cores
from convert.layouts import LAYOUTS
from convert.mapping import to_tensors
from flax_shufflenet.datasets import data
from flax_shufflenet.datasets.catalogue import default_data_dir
from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.functional import split
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.optimizer import make_optimizer
from flax_shufflenet.training.step import initial_state, make_update
from flax_shufflenet.weights import cast_floats, flat_arrays, from_arrays

_BARS = {"float32": 1e-3, "float64": 1e-8}
_SHOWN = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Losses(NamedTuple):
    """Of one step: in JAX, in PyTorch, and in PyTorch from weights that were moved by one rounding."""

    jax: float
    torch: float
    moved: float


def losses(
    config: Config, architecture: fs.Architecture, dataset: Dataset, *, total_steps: int, dtype: str
) -> Iterator[Losses]:
    """The losses of each step of a run, all three computing in ``dtype``; a net of the seed's family."""
    batches = Batches(config, dataset)  # made without float64: with it, JAX draws other random numbers
    first = fs.ShuffleNetV2(architecture, rngs=nnx.Rngs(config.seed))
    arrays = {name: np.asarray(array) for name, array in flat_arrays(first).items()}
    with jax.enable_x64(dtype == "float64"):
        arrays = cast_floats(arrays, dtype)
        rates = learning_rates(config, total_steps)
        exact = Trainer(_torch_net(architecture, arrays), config, rates)
        moved = Trainer(_moved_by_rounding(_torch_net(architecture, arrays)), config, rates)
        model = from_arrays(architecture, arrays, dtype=dtype)
        model.train()
        network, parameters, statistics = split(model)
        optimizer = make_optimizer(config, total_steps)
        state = initial_state(parameters, statistics, optimizer)
        update = jax.jit(make_update(network, optimizer, config), donate_argnums=0)
    for step in range(total_steps):
        images, labels = batches[step]
        with jax.enable_x64(dtype == "float64"):
            state, ours = update(state, images, labels)
            theirs, control = exact.step(step, images, labels), moved.step(step, images, labels)
        yield Losses(float(ours.loss), float(theirs.loss), float(control.loss))


def _torch_net(architecture: fs.Architecture, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    tensors = to_tensors(LAYOUTS["seed"], architecture, arrays)
    net = LAYOUTS["seed"].build_reference(architecture).to(tensors["conv1.weight"].dtype)
    net.load_state_dict(tensors)
    return net


def _moved_by_rounding(net: torch.nn.Module) -> torch.nn.Module:
    """Every weight one unit in the last place up or down, at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            limit = torch.where(up, torch.inf, -torch.inf).to(weight.dtype)
            weight.copy_(torch.where(weight == 0, weight, torch.nextafter(weight, limit)))
    return net


class _Distance:
    """The largest difference of two runs' losses so far, and the first step at which it was above the bar."""

    def __init__(self, bar: float) -> None:
        self._bar = bar
        self.largest, self.passed = 0.0, 0

    def add(self, number: int, difference: float) -> None:
        self.largest = max(self.largest, difference)
        if not self.passed and not difference <= self._bar:
            self.passed = number

    def __str__(self) -> str:
        passed = (
            f"above {self._bar:g} from step {self.passed}" if self.passed else f"within {self._bar:g} at every step"
        )
        return f"largest {self.largest:.1e}, {passed}"


def _compare(config: Config, dataset: Dataset, steps: int, total_steps: int, dtype: str) -> None:
    ours, control = _Distance(_BARS[dtype]), _Distance(_BARS[dtype])
    print(f"\n{dtype}: losses, and their absolute differences from PyTorch's")
    print(f"{'step':>6}{'PyTorch':>12}{'JAX':>12}{'moved':>12}{'JAX':>12}{'moved':>12}")
    architecture = fs.seed(config.net_size or 1.0, len(dataset.class_names))
    found = losses(config, architecture, dataset, total_steps=total_steps, dtype=dtype)
    for number, one in enumerate(islice(found, steps), 1):
        differences = abs(one.jax - one.torch), abs(one.moved - one.torch)
        ours.add(number, differences[0])
        control.add(number, differences[1])
        if number in (*_SHOWN, steps):
            figures = "".join(f"{loss:12.6f}" for loss in (one.torch, one.jax, one.moved))
            print(f"{number:6d}{figures}" + "".join(f"{difference:12.1e}" for difference in differences), flush=True)
    print(f"JAX from PyTorch, {steps} steps: {ours}")
    print(f"PyTorch, moved by one rounding, from PyTorch: {control}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_losses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=("cifar10", "cifar100", "digits"), default="cifar10")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument("--net_size", type=float, default=0.5)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=5, help="of the run whose first steps are compared (default 5)")
    parser.add_argument("--steps", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(_BARS), default=tuple(_BARS))
    return parser


def main() -> int:
    """Returns the exit code."""
    options = _parser().parse_args()
    try:
        config = Config(
            dataset=options.dataset,
            data_dir=options.data_dir,
            net_size=options.net_size,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            epochs=options.epochs,
            seed=options.seed,
        )
        dataset = data.load(config.dataset, config.data_dir)
    except (OptionError, TrainingError) as error:
        print(f"same_losses: {error}", file=sys.stderr)
        return 2 if isinstance(error, OptionError) else 1
    total_steps = config.epochs * (len(dataset.train_labels) // config.batch_size)
    threads = use_all_cores()
    print(", ".join(f"{name} {number}" for name, number in installed_versions().items()) + f"; {threads} threads")
    print(
        f"ShuffleNetV2 {config.net_size} on {dataset.name}, batch {config.batch_size}, learning rate "
        f"{config.learning_rate} along a cosine of {total_steps:,} steps, augmented, the same weights and batches"
    )
    for dtype in options.dtypes:
        _compare(config, dataset, min(options.steps, total_steps), total_steps, dtype)
    return 0


if __name__ == "__main__":
    sys.exit(main())
