"""What a run computes: its first state, its step, its evaluation."""

import jax
from jax.sharding import Mesh

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.functional import split
from flax_shufflenet.model import ShuffleNetV2
from flax_shufflenet.training import devices
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.evaluation import Evaluation, make_evaluate, make_predict_of
from flax_shufflenet.training.feed import Order, ResidentFeed, StreamFeed
from flax_shufflenet.training.freezing import freeze_backbone
from flax_shufflenet.training.optimizer import make_optimizer, make_schedule
from flax_shufflenet.training.step import (
    StepMetrics,
    TrainState,
    final_arrays,
    initial_state,
    make_train_step,
)


class Program:
    """Follows from the options and the data alone; where a run stands is in its ``TrainState``.

    Epochs and steps are counted from 1. ``initial`` is the state before step 1. ``feed`` brings the images.
    """

    def __init__(self, model: ShuffleNetV2, config: Config, dataset: AnyDataset, mesh: Mesh | None = None) -> None:
        """``model`` is the net to start from, in train mode; it comes out in eval mode."""
        self.steps_per_epoch = len(dataset.train_labels) // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.architecture = model.architecture

        trained = freeze_backbone(model) if config.freeze == "backbone" else None
        network, parameters, statistics = split(devices.divide(model, config, mesh))
        model.eval()
        self._eval_network, _, _ = split(model)
        optimizer = make_optimizer(config, self.total_steps)
        self._schedule = jax.jit(make_schedule(config, self.total_steps))
        initial = initial_state(parameters, statistics, optimizer, averaged=config.ema > 0, trained=trained)
        self.initial: TrainState = devices.replicate(initial, mesh)

        in_memory = isinstance(dataset, Dataset)
        self.feed = ResidentFeed(dataset, config, mesh) if in_memory else StreamFeed(dataset, config, mesh)
        self._step = make_train_step(network, optimizer, config, dataset, mesh=mesh, trained=trained)
        predict = make_predict_of(self._eval_network, dataset, flip=config.test_flip, mesh=mesh)
        self._evaluate = make_evaluate(predict, dataset.test_labels)

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step, so that the first epoch is as fast as the others; returns it, to be looked at.

        It is compiled for ``initial``, whatever state a run then starts from, so that it is always the same program.
        """
        lowered = self._step.lower(self.initial, *self.feed.template())
        self._compiled_step = lowered.compile()
        return self._compiled_step

    def order(self, epoch: int) -> Order:
        """The order in which an epoch goes through the training images; None where the feed keeps it."""
        return self.feed.order(epoch)

    def step(self, state: TrainState, order: Order) -> tuple[TrainState, StepMetrics]:
        """One step, not waited for. The state that goes in is donated; ``order`` is that of the step's epoch."""
        return self._compiled_step(state, *self.feed.arguments(order))

    def learning_rate(self, step: int) -> float:
        """Of one step."""
        return float(self._schedule(step - 1))

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
