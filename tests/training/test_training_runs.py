"""Runs read back, and laid side by side by ``flax-shufflenet compare``."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flax_shufflenet.commands import compare
from flax_shufflenet.runs import plots
from flax_shufflenet.runs.run import RunError, duration, read_run, wilson_interval

ROOT = Path(__file__).parents[2]


def epoch(number, accuracy=0.5, **figures):
    return {
        "epoch": number,
        "train_loss": 1.0 / number,
        "test_loss": 1.5 / number,
        "train_accuracy": accuracy,
        "test_accuracy": accuracy,
        "learning_rate": 0.1,
        "images_per_second": 100.0 * number,
        "seconds": 10.0,
        **figures,
    }


def write_run(folder, epochs=(), end="", **options):
    folder.mkdir()
    config = {"net_size": 0.5, "dataset": "digits", "epochs": 3, "out": str(folder), **options}
    start = {"config": config, "source": "scikit-learn", "device": "cpu", "versions": {"jax": "1"}}
    lines = [json.dumps(record) for record in (start, *epochs)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + end)
    return folder


def test_a_run_that_is_being_written_is_read_as_far_as_it_goes(tmp_path):
    run = read_run(write_run(tmp_path / "run", [epoch(1, 0.25), epoch(2, 0.75), epoch(3, 0.5)], end='{"epoch": 4, "te'))
    assert [record["epoch"] for record in run.epochs] == [1, 2, 3]
    assert run.last is not None
    assert run.best is not None
    assert run.last["test_accuracy"] == 0.5
    assert run.best["epoch"] == 2
    assert run.seconds == 30
    assert run.images_per_second == 200


def test_a_run_before_its_first_epoch_has_no_figures(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert (run.last, run.best, run.images_per_second, run.seconds) == (None, None, None, 0)
    assert compare.cells({"run": run})[1] == ["run", "0/3", "-", "-", "0 s", "-"]


def test_an_epoch_that_was_done_again_counts_once(tmp_path):
    run = read_run(write_run(tmp_path / "run", [epoch(1), epoch(2, 0.25), epoch(2, 0.75)]))
    assert [record["test_accuracy"] for record in run.epochs] == [0.5, 0.75]


def test_figures_that_were_not_finite_are_left_out_of_a_curve(tmp_path):
    run = read_run(write_run(tmp_path / "run", [epoch(1), epoch(2, test_loss=None), epoch(3)]))
    assert run.series("test_loss") == ([1, 3], [1.5, 0.5])


def with_epoch(**figures):
    return "".join(json.dumps(record) + "\n" for record in ({"config": {"epochs": 3}}, epoch(1) | figures))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no metrics.jsonl"),
        ("", "does not begin with a run's description"),
        ('{"epoch": 1}\n', "does not begin with a run's description"),
        ('{"config": {}}\nnot JSON\n{"epoch": 1}\n', "line 2 is not JSON"),
        (b"\xff\xfe", "it is not text"),
        ("[" * 100_000 + "\n{}\n", "line 1 is not JSON"),
        ('{"config": {}}\n', "line 1 does not say the number of epochs, or the versions"),
        ('{"config": {"epochs": 3}, "versions": null}\n', "line 1 does not say the number of epochs, or the versions"),
        (with_epoch(epoch=None), "line 2 has null for epoch, which is no whole number"),
        (with_epoch(test_accuracy=None), "line 2 has null for test_accuracy, which is no number"),
        (with_epoch(seconds="1"), 'line 2 has "1" for seconds, which is no number'),
        (with_epoch(train_loss=[1] * 99), r"line 2 has \[1, 1, .* \[\.\.\.\] for train_loss, which is no number"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, content, said):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=said) as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_wilson_intervals_are_the_published_ones():
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        np.testing.assert_allclose(wilson_interval(right, count), (low, high), atol=5e-5)
    np.testing.assert_allclose(wilson_interval(1, 29), (0.0061, 0.1718), atol=5e-5)
    assert wilson_interval(20, 20)[1] == 1


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 60.0, 3599.0, 3600.0, 90061.0)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "25 h 1 min",
    ]


def test_labels_are_moved_apart_but_not_far():
    np.testing.assert_allclose(plots.spread([0.5, 0.1, 0.52], 0.1), [0.46, 0.1, 0.56])
    np.testing.assert_allclose(plots.spread([0.2, 0.2, 0.2], 0.1), [0.1, 0.2, 0.3])
    # The upper two together reach down to the lowest.
    np.testing.assert_allclose(plots.spread([0.3, 0.5, 0.5], 0.2), [0.7 / 3 + 0.0, 1.3 / 3, 1.9 / 3])


def test_only_what_differs_is_compared(tmp_path):
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", seed=1)
    runs = [read_run(one), read_run(other)]
    assert compare.differences(runs) == {"seed": [None, 1]}


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [read_run(write_run(tmp_path / name)) for name in ("a/run", "b/run", "other")]
    assert list(compare.name_runs(runs)) == [str(tmp_path / "a/run"), str(tmp_path / "b/run"), "other"]


def test_the_command_prints_plain_rows_and_needs_no_jax(tmp_path):
    one = write_run(tmp_path / "one", [epoch(1, 0.5), epoch(2, 0.75)])
    other = write_run(tmp_path / "other", [epoch(1, 0.25)], batch_size=64)
    code = (
        "import sys; sys.modules['jax'] = None\n"
        f"sys.argv[1:] = {[str(one), str(other), str(tmp_path), '--plot', str(tmp_path / 'plot.png')]}\n"
        "from flax_shufflenet.commands.compare import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"compare: {tmp_path} is no training run: no metrics.jsonl in it\n"
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["one", "-", "2/3", "75.00", "%", "75.00", "%", "(2)", "20", "s", "150"]
    assert rows[2] == ["other", "64", "1/3", "25.00", "%", "25.00", "%", "(1)", "10", "s", "100"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch):
    runs = [write_run(tmp_path / f"[b]run {number}", init=f"nets/[v{number}]/:fire:") for number in (1, 2)]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, runs)])
    assert compare.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines[1:]] == [
        ["[b]run 1", "nets/[v1]/:fire:"],
        ["[b]run 2", "nets/[v2]/:fire:"],
    ]


def test_runs_of_any_name_can_be_drawn(tmp_path):
    run = read_run(write_run(tmp_path / "run", [epoch(1), epoch(2)]))
    names = (r"$\frac$", "a$b$", "\udcff")
    assert plots.comparison(dict.fromkeys(names, run)).startswith(b"\x89PNG")
    assert plots.curves(run, " ".join(names)).startswith(b"\x89PNG")


def test_json_has_every_figure(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "one", [epoch(1, 0.5), epoch(2, 0.25)])
    monkeypatch.setattr(sys, "argv", ["compare", str(folder), "--json"])
    assert compare.main() == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert row["last_test_accuracy"] == 0.25
    assert (row["best_test_accuracy"], row["best_epoch"]) == (0.5, 1)
    assert row["description"]["config"]["net_size"] == 0.5
