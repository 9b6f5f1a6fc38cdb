"""``python -m benchmarks.training_parity``: one step of ``train.py`` with a net of each family, against PyTorch.

The step is the jitted and donated one that a run takes: it crops, mirrors and normalises a batch of its training
images, and updates the net by SGD. The same batch goes through the layout's PyTorch module and ``torch.optim.SGD``.
Weights and running statistics are random. Loss, gradients, running statistics and the parameters after the step are
compared in float64, each array relative to its largest value.
"""

import argparse
import copy
import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F  # noqa: N812
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from benchmarks.differences import worst_difference
from benchmarks.report import installed_versions
from convert import mapping
from convert.layouts import LAYOUTS, Layout
from convert.proof.verify import FLOAT64_BAR
from flax_shufflenet import Architecture, preset
from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.functional import Functional, split
from flax_shufflenet.images.preprocessing import expected_by
from flax_shufflenet.training import devices
from flax_shufflenet.training.batches import Batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.optimizer import make_optimizer
from flax_shufflenet.training.random_streams import epoch_order
from flax_shufflenet.training.step import (
    dropout_rngs,
    initial_state,
    make_train_step,
)
from flax_shufflenet.weights import cast_floats, flat_arrays, from_arrays
from torch_ref.randomise import randomise

# A learning rate that float32 holds exactly, since a schedule may be computed in that.
CONFIG = Config(batch_size=4, epochs=10, learning_rate=0.125, momentum=0.9, weight_decay=5e-4)


class Step(NamedTuple):
    """What one step did: the loss before it, and the rest under Flax names."""

    loss: float
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    parameters: dict[str, np.ndarray]


class Case(NamedTuple):
    """A net in PyTorch and the data of its step. The net is left in the state that it starts from."""

    layout: Layout
    architecture: Architecture
    torch_net: torch.nn.Module
    dataset: Dataset
    config: Config

    def arrays(self, tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return mapping.to_arrays(self.layout, self.architecture, tensors)


def make_case(layout: str, architecture: Architecture, *, batch_size: int = 4) -> Case:
    """Random weights, running statistics and images."""
    return Case(
        LAYOUTS[layout],
        architecture,
        randomise(LAYOUTS[layout].build_reference(architecture)),
        _random_dataset(batch_size + 2, *image_size(architecture), architecture.num_classes),
        dataclasses.replace(CONFIG, batch_size=batch_size),
    )


def image_size(architecture: Architecture) -> tuple[int, int]:
    """Height and width of images that a net takes: uneven ones, where it does not insist on a square."""
    if architecture.pool_size:
        side = architecture.pool_size * architecture.shrinking
        return side, side
    return (65, 93) if architecture.stem_pool else (33, 47)


def _random_dataset(count: int, height: int, width: int, classes: int) -> Dataset:
    random = np.random.default_rng(0)
    # Powers of two over 255: normalised values are then exact, wherever a compiler rounds.
    std = tuple(power / 255 for power in (32, 64, 128))
    return Dataset(
        name="random",
        source="random numbers",
        train_images=random.integers(0, 256, (count, height, width, 3), dtype=np.uint8),
        train_labels=random.integers(0, classes, count).astype(np.int32),
        test_images=np.zeros((1, height, width, 3), np.uint8),
        test_labels=np.zeros(1, np.int32),
        class_names=tuple(map(str, range(classes))),
        mean=tuple(factor * value for factor, value in zip((4, 1, 0.5), std, strict=True)),
        std=std,
        flip=True,
    )


def jax_step(
    case: Case,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
    compiler_options: dict[str, str | bool] | None = None,
) -> Step:
    """The step that ``train.py`` takes, with a net that computes in ``dtype``, on one device or over a mesh."""
    arrays = cast_floats(case.arrays(case.torch_net.state_dict()), dtype)
    model = from_arrays(case.architecture, arrays, dtype=dtype)
    model.train()
    network, parameters, statistics = split(devices.divide(model, case.config, mesh))
    optimizer = make_optimizer(case.config, case.config.epochs)
    state = devices.replicate(initial_state(parameters, statistics, optimizer), mesh)
    step = make_train_step(network, optimizer, case.config, case.dataset, mesh=mesh)
    data = devices.replicate(_data(case), mesh)
    new_state, metrics = step.lower(state, *data).compile(compiler_options)(state, *data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)), "the step did not take the state's memory"
    # After one step, SGD's momentum is the gradient and the decay.
    momentum = optax.tree_utils.tree_get(new_state.optimizer, "trace")
    gradients = [
        jax.device_put(np.asarray(sum_, np.float64) - case.config.weight_decay * np.asarray(parameter, np.float64))
        for sum_, parameter in zip(momentum, parameters, strict=True)
    ]
    after = _named(network, new_state.parameters, new_state.statistics)
    return Step(
        float(metrics.loss),
        _without_statistics(_named(network, gradients, new_state.statistics)),
        {name: array for name, array in after.items() if _is_statistic(name)},
        _without_statistics(after),
    )


def _named(network: Functional, parameters: list[jax.Array], statistics: list[jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flat_arrays(network.model(parameters, statistics)).items()}


def torch_step(case: Case, dtype: torch.dtype, *, replicas: int = 1) -> Step:
    """The same step by the layout's module and ``torch.optim.SGD``.

    Of several replicas each has its part of the batch, and gradients are averaged, as DistributedDataParallel does it;
    so are loss and running statistics.
    """
    nets = [copy.deepcopy(case.torch_net).to(dtype).train() for _ in range(replicas)]
    net = nets[0]
    for name, module in list(net.named_modules()):
        if isinstance(module, torch.nn.Dropout):
            assert replicas == 1, "the mask is that of the whole batch"
            net.set_submodule(name, _Times(_dropout_mask(case), dtype))
    sgd = torch.optim.SGD(
        net.parameters(),
        case.config.learning_rate,
        case.config.momentum,
        weight_decay=case.config.weight_decay,
        nesterov=True,
    )
    batch_of = jax.jit(partial(Batches.of(case.config, case.dataset).pick, 0))
    images, labels = batch_of(*_data(case))
    x = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy()).to(dtype)
    y = torch.from_numpy(np.asarray(labels, np.int64))
    losses = [
        F.cross_entropy(each(own), own_labels)
        for each, own, own_labels in zip(nets, x.chunk(replicas), y.chunk(replicas), strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    for own, *others in zip(*(each.parameters() for each in nets), strict=True):
        for other in others if own.grad is not None else ():
            own.grad += other.grad
    for own, *others in zip(*(each.buffers() for each in nets), strict=True):
        if own.is_floating_point():
            own.copy_(torch.stack([own, *others]).mean(0))
    gradients = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    sgd.step()
    after = case.arrays(net.state_dict())
    return Step(
        loss.item(),
        _without_statistics(case.arrays(net.state_dict() | gradients)),
        {name: array for name, array in after.items() if _is_statistic(name)},
        _without_statistics(after),
    )


class _Times(torch.nn.Module):
    def __init__(self, factors: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__()
        self.factors = torch.from_numpy(factors).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


def _dropout_mask(case: Case) -> np.ndarray:
    """What the step multiplies the features by."""
    ones = jnp.ones((case.config.batch_size, case.torch_net.get_submodule(case.layout.head).in_features))
    return np.array(nnx.Dropout(case.architecture.dropout)(ones, rngs=dropout_rngs(case.config.seed, 0)))


def _data(case: Case) -> tuple[jax.Array, jax.Array, jax.Array]:
    images, labels = jnp.asarray(case.dataset.train_images), jnp.asarray(case.dataset.train_labels)
    return images, labels, epoch_order(case.config.seed, 0, len(images))


def _is_statistic(name: str) -> bool:
    return name.endswith((".mean", ".var", ".num_batches_tracked"))


def _without_statistics(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if not _is_statistic(name)}


class Differences(NamedTuple):
    """The largest relative ones, and for arrays where they are."""

    loss: float
    gradients: tuple[float, str]
    statistics: tuple[float, str]
    parameters: tuple[float, str]

    @property
    def largest(self) -> float:
        return max(self.loss, *(found[0] for found in self[1:]))


def compare(ours: Step, theirs: Step) -> Differences:
    return Differences(
        abs(ours.loss - theirs.loss) / abs(theirs.loss),
        *(worst_difference(getattr(ours, name), getattr(theirs, name)) for name in Differences._fields[1:]),
    )


def _usual_input(architecture: Architecture, layout: str) -> str:
    """What ``train.py`` gives a net that was converted from this layout, unless its file says another."""
    expected = expected_by(architecture, {"layout": layout})
    order = "blue, green, red" if expected.bgr else "red, green, blue"
    return f"{expected.size}x{expected.size}, {order}, {expected.assumed['normalisation']}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_parity", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--size", type=float, choices=(0.5, 1.0, 1.5, 2.0), default=0.5)
    arguments = parser.parse_args()
    print(", ".join(f"{name} {number}" for name, number in installed_versions().items()))
    device = jax.devices()[0].device_kind
    print(f"size {arguments.size}, batch {CONFIG.batch_size}, float64 on {device}, bar {FLOAT64_BAR:.0e}\n")
    print("| family | fine-tuned on | step on | loss | gradients | statistics | parameters after the step | |")
    print("|---|---|---|---|---|---|---|---|")
    equal = True
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for family in arguments.families:
            usual = preset(family, arguments.size)
            # A backbone gets a classifier, as fine-tuning gives it one.
            case = make_case(family, dataclasses.replace(usual, num_classes=usual.num_classes or 10))
            found = compare(jax_step(case, jnp.float64), torch_step(case, torch.float64))
            height, width = image_size(case.architecture)
            figures = " | ".join(f"{figure:.1e}" for figure in (found.loss, *(place[0] for place in found[1:])))
            same = found.largest <= FLOAT64_BAR
            row = [family, _usual_input(usual, family), f"{height}x{width}", figures, "equal" if same else "DIFFERS"]
            print("|", " | ".join(row), "|", flush=True)
            equal &= same
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
