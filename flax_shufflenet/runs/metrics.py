"""A run's figures, one JSON object per line."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flax_shufflenet.runs.tensorboard import TensorBoardWriter
from flax_shufflenet.system.files import named_in_errors, write_whole


class MetricsWriter:
    """Writes a fresh file; each line is on disk as soon as it is written, so a running file can be followed.

    ``records`` are those written so far. A run that is gone on with starts with the ones of its checkpoint, whatever
    the file held before. Without a ``path`` nothing is written, as in all processes of a run but one.
    ``tensorboard`` is a folder for the same figures as TensorBoard reads them.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self, path: Path | None, records: Iterable[Mapping[str, Any]] = (), *, tensorboard: Path | None = None
    ) -> None:
        self.records = [_finite(record) for record in records]
        self._file = None
        if path is not None:
            write_whole(path, "".join(map(_line, self.records)).encode())
            self._file = path.open("a", encoding="utf-8")
        self._board = None if tensorboard is None else TensorBoardWriter(tensorboard, self.records)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line. A number that is not finite becomes null, since JSON has no other word for it."""
        self.records.append(_finite(record))
        if self._file is not None:
            with named_in_errors(self._file.name):
                self._file.write(_line(self.records[-1]))
                self._file.flush()
        if self._board is not None:
            self._board.write(self.records[-1])

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with named_in_errors(self._file.name):
                self._file.close()
        if self._board is not None:
            self._board.close()


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
