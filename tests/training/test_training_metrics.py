"""The metrics file is JSON, line by line."""

import importlib.util
import json
import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute], made on import

from flax_shufflenet.errors import OptionError
from flax_shufflenet.runs.metrics import MetricsWriter
from flax_shufflenet.training.config import Config


def test_each_record_is_a_line_at_once_and_nothing_is_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("an earlier run\n")
    with MetricsWriter(path) as metrics:
        metrics.write({"epoch": 1, "test_loss": 0.5})
        assert json.loads(path.read_text()) == {"epoch": 1, "test_loss": 0.5}
        metrics.write({"epoch": 2, "test_loss": math.nan})
    assert [json.loads(line) for line in path.read_text().splitlines()][1] == {"epoch": 2, "test_loss": None}


def read_scalars(folder):
    """{(tag, step): value} of the one events file there: records of a length, its checksum, an Event, its checksum."""
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), {}
    while content:
        (length,) = struct.unpack_from("<Q", content)
        event = Event.FromString(content[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[12 + length + 4 :]
    return found


def test_tensorboard_has_the_epochs_that_a_run_goes_on_from_and_those_after(tmp_path):
    board, records = tmp_path / "board", [{"config": {}}, {"epoch": 1, "step": 10, "test_accuracy": 0.25}]
    for _ in range(2):  # the second time, what the first wrote is replaced
        with MetricsWriter(tmp_path / "metrics.jsonl", records, tensorboard=board) as metrics:
            metrics.write({"epoch": 2, "step": 20, "test_accuracy": 0.5, "test_loss": math.nan})
    assert read_scalars(board) == {("accuracy/test", 10): 0.25, ("accuracy/test", 20): 0.5}


def test_without_tensorboardx_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        OptionError, match=r"^--tensorboard needs tensorboardX: pip install 'flax-shufflenet\[tensorboard\]'$"
    ):
        Config(tensorboard=True)
