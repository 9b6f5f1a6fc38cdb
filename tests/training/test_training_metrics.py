"""The metrics file is JSON, line by line."""

import json
import math

from flax_shufflenet.training.metrics import MetricsWriter


def test_each_record_is_a_line_at_once_and_nothing_is_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("an earlier run\n")
    with MetricsWriter(path) as metrics:
        metrics.write({"epoch": 1, "test_loss": 0.5})
        assert json.loads(path.read_text()) == {"epoch": 1, "test_loss": 0.5}
        metrics.write({"epoch": 2, "test_loss": math.nan})
    assert [json.loads(line) for line in path.read_text().splitlines()][1] == {"epoch": 2, "test_loss": None}
