"""What a run computes: its first state, its step, its evaluation, on data that lies on the devices."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.functional import split
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.training import devices
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.evaluation import Evaluation, make_evaluate
from flax_shufflenet.training.freezing import freeze_backbone
from flax_shufflenet.training.step import (
    StepMetrics,
    TrainState,
    epoch_order,
    final_arrays,
    initial_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)


class Program:
    """Follows from the options and the data alone; where a run stands is in its ``TrainState``.

    Epochs and steps are counted from 1. ``initial`` is the state before step 1.
    """

    def __init__(self, model: ShuffleNetV2, config: Config, dataset: Dataset, mesh: Mesh | None = None) -> None:
        """``model`` is the net to start from, in train mode; it comes out in eval mode."""
        self._mesh = mesh
        self._seed = config.seed
        self._count = len(dataset.train_labels)
        self.steps_per_epoch = self._count // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.architecture = model.architecture

        trained = freeze_backbone(model) if config.freeze == "backbone" else None
        network, parameters, statistics = split(model)
        model.eval()
        self._eval_network, _, _ = split(model)
        optimizer = make_optimizer(config, self.total_steps)
        self._schedule = make_schedule(config, self.total_steps)
        initial = initial_state(parameters, statistics, optimizer, averaged=config.ema > 0, trained=trained)
        self.initial: TrainState = devices.replicate(initial, mesh)

        self._images, self._labels = devices.replicate((dataset.train_images, dataset.train_labels), mesh)
        self._step = make_train_step(network, optimizer, config, dataset, mesh=mesh, trained=trained)
        self._evaluate = make_evaluate(
            self._eval_network,
            devices.replicate(jnp.asarray(dataset.test_images), mesh),
            dataset.test_labels,
            mean=dataset.mean,
            std=dataset.std,
            bgr=dataset.bgr,
            flip=config.test_flip,
            mesh=mesh,
        )

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step, so that the first epoch is as fast as the others; returns it, to be looked at.

        It is compiled for ``initial``, whatever state a run then starts from, so that it is always the same program.
        """
        lowered = self._step.lower(self.initial, self._images, self._labels, self.order(1))
        self._compiled_step = lowered.compile()
        return self._compiled_step

    def order(self, epoch: int) -> Int32[Array, " train"]:
        """The order in which an epoch goes through the training images."""
        return devices.replicate(epoch_order(self._seed, epoch - 1, self._count), self._mesh)

    def step(self, state: TrainState, order: Int32[Array, " train"]) -> tuple[TrainState, StepMetrics]:
        """One step, not waited for. The state that goes in is donated; ``order`` is that of the step's epoch."""
        return self._compiled_step(state, self._images, self._labels, order)

    def learning_rate(self, step: int) -> float:
        """Of one step."""
        return float(jnp.asarray(self._schedule(step - 1)))

    def evaluate(self, state: TrainState) -> Evaluation:
        """Loss and accuracy on the test images, of the net that would be saved."""
        return self._evaluate(*final_arrays(state))

    def evaluate_raw(self, state: TrainState) -> Evaluation:
        """The same of the net that is trained, where the one that would be saved is an average."""
        return self._evaluate(state.parameters, state.statistics)

    def net(self, state: TrainState) -> ShuffleNetV2:
        """The net that a state holds, in eval mode; the averaged one where there is one."""
        model = self._eval_network.model(*final_arrays(state))
        assert isinstance(model, ShuffleNetV2)
        return model
