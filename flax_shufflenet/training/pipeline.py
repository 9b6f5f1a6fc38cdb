"""Where the images of a run lie while it trains: in the device's memory, or on disk, read batch by batch."""

from pathlib import Path
from typing import NamedTuple

import jax

from flax_shufflenet.datasets import data
from flax_shufflenet.datasets.catalogue import IMAGENET, SMALL
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.system import memory
from flax_shufflenet.training import devices
from flax_shufflenet.training.config import Config

# Of the memory of the device, and of the machine: the images lie in both, beside what training itself takes.
LARGEST_SHARE = 1 / 4


class Choice(NamedTuple):
    """A pipeline, ``device`` or ``stream``, and why it is that."""

    name: str
    reason: str


def load(config: Config, image_size: int) -> tuple[AnyDataset, str]:
    """The run's dataset, and a line that says which pipeline it comes by and why.

    Raises:
        OptionError, TrainingError: those of ``data.load`` and ``streamed.open_stream``, or images that are to lie in
            the device's memory and do not fit.
    """
    if config.dataset in SMALL:
        dataset = data.load(config.dataset, config.data_dir)
        needed = dataset.train_images.nbytes + dataset.test_images.nbytes
        devices.check_memory(needed, _stats(), "take a device with more memory")
        return dataset, f"device: {config.dataset} is small"
    if config.dataset == IMAGENET:
        _require_grain()
        from flax_shufflenet.datasets import imagenet

        dataset = imagenet.open_stream(config.data_dir, image_size, skip_unreadable=config.skip_unreadable)
        return dataset, f"stream: {config.dataset} is read from its records"
    from flax_shufflenet.datasets import image_folder, streamed

    parts = image_folder.find_parts(Path(config.dataset), config.test_share)
    needed = (len(parts.train.paths) + len(parts.test.paths)) * image_size**2 * 3
    choice = choose(config.pipeline, needed, memory.total(), _stats())
    if choice.name == "stream":
        _require_grain()
        dataset = streamed.open_stream(parts, image_size, skip_unreadable=config.skip_unreadable)
    else:
        devices.check_memory(needed, _stats(), "stream them with --pipeline stream, or take a smaller --image_size")
        dataset = image_folder.decode(parts, image_size, skip_unreadable=config.skip_unreadable)
    return dataset, f"{choice.name}: {choice.reason}"


def choose(asked_for: str, needed: int, machine: float, stats: devices.MemoryStats | None) -> Choice:
    """The pipeline for ``needed`` bytes of decoded images on a ``machine`` with so much memory, and a device with these
    ``memory_stats``; some devices have none of their own."""
    takes = f"the decoded images take {_size(needed)}"
    if asked_for != "auto":
        return Choice(asked_for, f"asked for; {takes}")
    device = (stats or {}).get("bytes_limit", machine)
    smaller, whose = (device, "the device's") if device < machine else (machine, "this machine's")
    fits = needed <= smaller * LARGEST_SHARE
    compared = f"{'within' if fits else 'more than'} {LARGEST_SHARE:.0%} of {whose} {_size(smaller)}"
    return Choice("device" if fits else "stream", f"{takes}, {compared}")


def _require_grain() -> None:
    """Where it is missing, that is said before any image is read."""
    import grain  # noqa: F401


def _stats() -> devices.MemoryStats | None:
    return jax.local_devices()[0].memory_stats()


def _size(count: float | int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
