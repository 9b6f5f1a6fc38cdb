"""Batches of images that are read from disk while the net trains, through grain: other processes decode them.

Which images a batch has, and which part of each, follows from the seed and the step's number alone. For images that
are stretched to a small square, it has the bits that the pipeline of images in the device's memory makes.
"""

import contextlib
import signal
from collections.abc import Generator
from multiprocessing import resource_tracker
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Array, Int32, UInt8

from flax_shufflenet.datasets.streamed import StreamedDataset
from flax_shufflenet.errors import TrainingError, one_line
from flax_shufflenet.images.reading import ImageError
from flax_shufflenet.system import cpus
from flax_shufflenet.training import devices
from flax_shufflenet.training.stream_worker import ImageOfPosition

# Batches that each worker has ready, beside the one that it works on.
_READY = 1


def worker_count() -> int:
    """How many processes decode images: as many as there are CPUs, but for the one that training itself needs."""
    return max(1, cpus.available() - 1)


class BatchStream:
    """The batches of a run, one for each step, in order; each process has its own rows of them. Close it."""

    def __init__(
        self,
        dataset: StreamedDataset,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        mesh: Mesh | None = None,
        workers: int | None = None,
    ) -> None:
        """``workers``: how many processes read images; None for as many as the CPUs allow."""
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks for flags of its own
        self._mesh = mesh
        self._template = (
            devices.batch_template((batch_size, dataset.image_size, dataset.image_size, 3), np.uint8, mesh),
            devices.batch_template((batch_size,), np.int32, mesh),
        )
        steps = epochs * (len(dataset.train_labels) // batch_size)
        rows = devices.own_rows(batch_size, mesh)
        image_of = ImageOfPosition(dataset, seed=seed, batch_size=batch_size, rows=rows)
        # Its state says how many images all processes have gone through, whatever their number and that of workers.
        elastic = grain.experimental.ElasticIterator(
            grain.MapDataset.range(steps * batch_size).random_map(image_of, seed=seed),
            batch_size,
            grain.sharding.ShardOptions(jax.process_index(), jax.process_count(), drop_remainder=True),
            read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
            multiprocessing_options=grain.MultiprocessingOptions(
                worker_count() if workers is None else workers, per_worker_buffer_size=_READY
            ),
        )
        self._batches = iter(elastic)
        self._started = False

    @property
    def template(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """The shapes of ``next_batch``."""
        return self._template

    def next_batch(self) -> tuple[UInt8[Array, "n h w 3"], Int32[Array, " n"]]:
        """Images and labels, on the devices.

        Raises:
            TrainingError: an image cannot be read, or a process that reads them has died.
        """
        try:
            with contextlib.nullcontext() if self._started else _signals_wait():
                batch = next(self._batches)
        except ImageError as error:
            raise TrainingError(f"{error}: repair it, or go on without it with --skip_unreadable") from None
        except RuntimeError as error:
            raise TrainingError(
                f"a process that reads images has ended ({one_line(error).partition('. ')[0]}): where memory or "
                "/dev/shm, by which batches are handed over, is full, take a smaller --batch_size; otherwise the same "
                "command goes on from the last checkpoint"
            ) from None
        self._started = True
        return (devices.place_batch(batch["image"], self._mesh), devices.place_batch(batch["label"], self._mesh))

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain JSON."""
        return self._batches.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where the stream of the same run stood that ``state`` is of."""
        self._batches.set_state(state)
        self._started = False

    def close(self) -> None:
        """Ends its processes."""
        self._batches.close()


@contextlib.contextmanager
def _signals_wait() -> Generator[None]:
    """Ctrl-C and SIGTERM arrive at the end. Processes that are started inside never get them: a terminal sends Ctrl-C
    to them too, and the run goes on for a step."""
    resource_tracker.ensure_running()  # starting it would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
