"""What the processes do that read a run's images: they import this module, which has to stay light."""

import functools
import multiprocessing
import os
import sys
import threading

import jax
import numpy as np
from jaxtyping import Int, Int32

from flax_shufflenet.datasets.streamed import StreamedDataset
from flax_shufflenet.images.reading import ImageError
from flax_shufflenet.training.random_streams import epoch_order


class ImageOfPosition:
    """The image at a position of the run, as the training of one process goes through it; used within the workers.

    Positions count the images of all processes' batches from the run's start: those that leave the same remainder when
    divided by the number of processes are one process's, whose rows of each batch are ``rows``.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        *,
        seed: int,
        batch_size: int,
        rows: Int[np.ndarray, " n"],
    ) -> None:
        self._dataset = dataset
        self._seed = seed
        self._batch_size = batch_size
        self._rows = rows
        self._count = len(dataset.train_labels)
        self._named: set[int] = set()

    def __call__(self, position: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        _prepare_worker()
        step, place = divmod(position, self._batch_size)
        epoch, step = divmod(step, self._count // self._batch_size)
        own_place = place // (self._batch_size // len(self._rows))
        index = int(_order(self._seed, epoch, self._count)[step * self._batch_size + self._rows[own_place]])
        for other in range(self._count):
            row = (index + other) % self._count
            try:
                image = self._dataset.train_image(row, random)
            except ImageError as error:
                if not self._dataset.skip_unreadable:
                    raise
                self._say_once(row, error)
            else:
                return {"image": image, "label": self._dataset.train_labels[row]}
        raise ImageError(f"{self._dataset.name}: no image that can be read to train on")

    def _say_once(self, row: int, error: ImageError) -> None:
        if row not in self._named:
            self._named.add(row)
            print(f"{error}: the next image in its folder takes its place", file=sys.stderr, flush=True)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Int32[np.ndarray, " count"]:
    return np.asarray(epoch_order(seed, epoch, count))


@functools.cache
def _prepare_worker() -> None:
    """Lets a worker compute on the CPU, whatever the device of the training is, and end when that ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    jax.config.update("jax_platforms", "cpu")

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
