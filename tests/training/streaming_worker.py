"""Saves a run's streamed batches as its devices got them: ``FOLDER PATH [COORDINATOR NUM_PROCESSES PROCESS_ID]``."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_shufflenet.datasets import image_folder, streamed
from flax_shufflenet.training import devices, processes
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.streaming import BatchStream


def main() -> None:
    folder, path, *rest = sys.argv[1:]
    if rest:
        processes.join(Config(coordinator=rest[0], num_processes=int(rest[1]), process_id=int(rest[2])))
    dataset = streamed.open_stream(image_folder.find_parts(Path(folder), None), 8, skip_unreadable=False)
    stream = BatchStream(dataset, seed=3, epochs=2, batch_size=4, mesh=devices.make_mesh())
    batches = [stream.next_batch() for _ in range(6)]
    stream.close()
    shards = batches[0][0].addressable_shards[0].data.shape[0]
    images, labels = (
        np.stack([multihost_utils.process_allgather(batch[part], tiled=True) for batch in batches]) for part in (0, 1)
    )
    if processes.is_first_process():
        np.savez(path, images=images, labels=labels, shards=shards)
    jax.block_until_ready(batches)


if __name__ == "__main__":
    main()
