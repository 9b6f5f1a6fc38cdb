"""What makes a run the one it is: only the same one may be gone on with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flax_shufflenet.architecture import Architecture
from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.errors import TrainingError
from flax_shufflenet.training.config import Config

# All other options have a say in the result.
FREE_OPTIONS = frozenset(
    {"data_dir", "skip_unreadable", "out", "force", "resume", "tensorboard", "no_compilation_cache"}
    | {"coordinator", "num_processes", "process_id"}
)


def identity(config: Config, dataset: AnyDataset, architecture: Architecture) -> dict[str, Any]:
    """The options that have a say in the result, the net, how it takes its images, and the dataset's fingerprint, as
    JSON has them; the number of devices too, where each has batch statistics of its own."""
    options = deciding_options(vars(config)) | {"pipeline": dataset.pipeline}
    found: dict[str, Any] = {
        "options": options,
        "architecture": architecture.to_json(),
        "input": {"mean": dataset.mean, "std": dataset.std, "bgr": dataset.bgr},
        "dataset": dataset.fingerprint(),
    }
    if config.batch_statistics == "per_device":
        found["devices"] = jax.device_count()
    return json.loads(json.dumps(found))


def deciding_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a say in the result, as JSON has them."""
    deciding = {name: value for name, value in options.items() if name not in FREE_OPTIONS}
    return json.loads(json.dumps(deciding, default=str))


def has_same_options(config: Config, options: Mapping[str, Any]) -> bool:
    """Whether a run whose metrics say that it had these ``options`` was started as ``config`` says."""
    return all(options.get(name, value) == value for name, value in deciding_options(vars(config)).items())


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path) -> None:
    """Raises:
    TrainingError: ``theirs``, the identity of the run in ``folder``, is another run's; the message says by what.
    """
    ways_out = "choose another --out, or start anew with --force"
    for name, value in ours["options"].items():
        before = theirs["options"].get(name, value)  # an option that is newer than that run
        if value != before:
            raise TrainingError(
                f"--{name} is {value}, but the unfinished run in {folder} was started with {before}: "
                f"go on with that, {ways_out}"
            )
    now, before = ours.get("devices"), theirs.get("devices")
    if now and before and now != before:
        raise TrainingError(
            f"--batch_statistics per_device depends on the number of devices: here are {now}, but the unfinished run "
            f"in {folder} was started on {before}: go on with as many, {ways_out}"
        )
    if ours["dataset"] != theirs["dataset"]:
        raise TrainingError(
            f"the images of {ours['options']['dataset']} are not those that the unfinished run in {folder} was "
            f"started with: give their --data_dir, {ways_out}"
        )
    if ours != theirs:
        raise TrainingError(f"the unfinished run in {folder} is that of another version of this program: {ways_out}")
