"""A run's figures for TensorBoard. tensorboardX, an extra, is imported where it is used."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_TAGS = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "raw_test_loss": "loss/test, not averaged",
    "train_accuracy": "accuracy/train",
    "test_accuracy": "accuracy/test",
    "raw_test_accuracy": "accuracy/test, not averaged",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}


class TensorBoardWriter:
    """Writes each epoch's figures as scalars, at the number of steps done.

    The folder is emptied first; ``records`` are those that a run goes on from, which are written anew.
    """

    def __init__(self, folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
        from tensorboardX import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        for record in records:
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """What the record has of the figures; nothing for one that is no epoch's, such as a run's description."""
        for key, tag in _TAGS.items():
            if record.get(key) is not None:
                self._writer.add_scalar(tag, record[key], record["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
