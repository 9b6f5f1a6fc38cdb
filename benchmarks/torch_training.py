"""PyTorch's side of a training run: ``torch_ref``'s net, SGD as the options say, and the batches that JAX makes.

Which images a step sees, and how they are augmented, is this project's own code, handed over without a copy. So both
frameworks train on the same numbers.
"""

import os
from typing import IO

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from jaxtyping import Array, Float, Float32, Int32

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.images.normalisation import normalise
from flax_shufflenet.training import batches
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.optimizer import make_schedule
from flax_shufflenet.training.random_streams import epoch_order
from flax_shufflenet.training.step import StepMetrics

_TEST_BATCH = 256


class Batches:
    """The batches of a run, as its train step in JAX makes them."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        self._count, self._seed = len(dataset.train_labels), config.seed
        self.steps_per_epoch = self._count // config.batch_size
        images, labels = jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels)
        self._arrays = images, labels
        self._make = jax.jit(batches.Batches.of(config, dataset).pick)
        self._epoch, self._order = -1, None

    def __getitem__(self, step: int) -> tuple[Float32[Array, "n h w 3"], Int32[Array, " n"]]:
        """The normalised images and the labels of step ``step``, counted from 0."""
        epoch = step // self.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._seed, epoch, self._count)
        return self._make(step, *self._arrays, self._order)


def learning_rates(config: Config, total_steps: int) -> np.ndarray:
    """Of each step, in the widest float that JAX has at the moment."""
    return np.asarray(jax.vmap(make_schedule(config, total_steps))(jnp.arange(total_steps)))


def use_all_cores() -> int:
    """As many threads as XLA takes: PyTorch's own default leaves out the second thread of a core."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


class Trainer:
    """A net and its optimiser; ``learning_rates`` has one for each step of the run. The net is made channels_last."""

    def __init__(self, net: torch.nn.Module, config: Config, learning_rates: np.ndarray) -> None:
        self.net = net.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload], unknown to its stubs
        self._dtype = next(net.parameters()).dtype
        self._learning_rates = learning_rates
        self._optimizer = torch.optim.SGD(
            net.parameters(),
            config.learning_rate,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
            fused=True,
        )

    def step(self, step: int, images: Float32[Array, "n h w 3"], labels: Int32[Array, " n"]) -> StepMetrics:
        """Does step ``step``, counted from 0."""
        self.net.train()
        (group,) = self._optimizer.param_groups
        group["lr"] = float(self._learning_rates[step])
        targets = torch.from_dlpack(labels).long()
        self._optimizer.zero_grad(set_to_none=True)
        logits = self.net(self._to_torch(images))
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        self._optimizer.step()
        correct = (logits.detach().argmax(1) == targets).sum(dtype=torch.int32)
        return StepMetrics(jnp.asarray(loss.detach().numpy()), jnp.asarray(correct.numpy()))

    def predict(self, dataset: Dataset) -> Float[np.ndarray, "test classes"]:
        """The logits of all test images, in eval mode."""
        self.net.eval()
        with torch.no_grad():
            logits = [
                self.net(self._to_torch(normalise(jnp.asarray(images), dataset.mean, dataset.std)))
                for images in np.split(dataset.test_images, range(_TEST_BATCH, len(dataset.test_images), _TEST_BATCH))
            ]
        return torch.cat(logits).numpy()

    def save_state(self, file: IO[bytes]) -> None:
        torch.save({"net": self.net.state_dict(), "optimizer": self._optimizer.state_dict()}, file)

    def load_state(self, file: IO[bytes]) -> None:
        """What ``save_state`` wrote."""
        state = torch.load(file, weights_only=True)
        self.net.load_state_dict(state["net"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _to_torch(self, images: Float32[Array, "n h w 3"]) -> torch.Tensor:
        # NHWC in memory, under NCHW's names, is what PyTorch calls channels_last.
        return torch.from_dlpack(images).to(self._dtype).permute(0, 3, 1, 2)
