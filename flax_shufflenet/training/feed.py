"""How images get to a run's train step: both kinds of feed have the same methods.

``order`` is what an epoch's steps have in common, ``arguments`` what a step gets beside the state, and ``template``
the same for compiling it. ``state`` is what a checkpoint keeps of the feed, and ``restore`` goes on from there.
"""

from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from flax_shufflenet.datasets.data import Dataset
from flax_shufflenet.datasets.streamed import StreamedDataset
from flax_shufflenet.training import devices
from flax_shufflenet.training.batches import as_rows
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.random_streams import epoch_order

Order = Int32[Array, " train"] | None


class ResidentFeed:
    """All images lie in the devices' memory, and the step picks and augments its batch there."""

    def __init__(self, dataset: Dataset, config: Config, mesh: Mesh | None) -> None:
        self._seed = config.seed
        self._count = len(dataset.train_labels)
        self._mesh = mesh
        self._images, self._labels = devices.replicate((as_rows(dataset.train_images), dataset.train_labels), mesh)

    def order(self, epoch: int) -> Order:
        return devices.replicate(epoch_order(self._seed, epoch - 1, self._count), self._mesh)

    def template(self) -> tuple[Any, ...]:
        return self.arguments(self.order(1))

    def arguments(self, order: Order) -> tuple[Any, ...]:
        return self._images, self._labels, order

    def state(self) -> None:
        """Nothing: the number of the step says it all."""

    def restore(self, state: None) -> None:
        pass

    def close(self) -> None:
        pass


class StreamFeed:
    """Batches come from disk, read by other processes."""

    def __init__(self, dataset: StreamedDataset, config: Config, mesh: Mesh | None) -> None:
        # Imported here: it takes seconds, and only this pipeline needs it.
        from flax_shufflenet.training.streaming import BatchStream

        self._stream = BatchStream(
            dataset, seed=config.seed, epochs=config.epochs, batch_size=config.batch_size, mesh=mesh
        )

    def order(self, epoch: int) -> Order:
        return None  # the workers know it

    def template(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return self._stream.template

    def arguments(self, order: Order) -> tuple[Array, ...]:
        return self._stream.next_batch()

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._stream.restore(state)

    def close(self) -> None:
        self._stream.close()
