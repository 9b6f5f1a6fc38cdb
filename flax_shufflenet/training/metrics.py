"""A run's figures, one JSON object per line."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Writes a fresh file; each line is on disk as soon as it is written, so a running file can be followed.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line. A number that is not finite becomes null, since JSON has no other word for it."""
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
