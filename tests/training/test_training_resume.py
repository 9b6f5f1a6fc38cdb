"""A run that was stopped, damaged or changed, and then gone on with."""

import json
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from flax_shufflenet import Architecture, ShuffleNetV2
from flax_shufflenet.training import data, loop
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.interruption import Interrupted
from flax_shufflenet.training.program import Program

# 5 steps in each of 3 epochs.
OPTIONS = {
    "dataset": "digits",
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "ema": 0.9,
    "no_compilation_cache": True,  # conftest has one for all tests
}


TINY = Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)


@pytest.fixture(scope="module", autouse=True)
def small_task(small_dataset):
    """All runs here are of a tiny net on a tiny dataset."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
        monkeypatch.setattr(loop, "initial_model", lambda *_: (ShuffleNetV2(TINY, rngs=nnx.Rngs(0)), "tiny"))
        monkeypatch.setattr(loop, "try_report", lambda *_: None)  # it has tests of its own
        yield


def train(out, **options):
    return loop.train(Config(out=out, **OPTIONS | options))


def interrupt_at(step, monkeypatch, number=signal.SIGINT):
    """From now on, the signal arrives while that step is under way."""
    original = Program.step

    def step_and_signal(self, state, order):
        if int(state.step) + 1 == step:
            signal.raise_signal(number)
        return original(self, state, order)

    monkeypatch.setattr(Program, "step", step_and_signal)


def interrupted_run(out, step, **options):
    with pytest.MonkeyPatch.context() as monkeypatch:
        interrupt_at(step, monkeypatch)
        with pytest.raises(Interrupted) as raised:
            train(out, **options)
    return raised.value


def results(out):
    """Everything that a run leaves, without what differs between any two runs: the time they took."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    del records[0]["config"]["out"]
    for record in records[1:]:
        del record["images_per_second"], record["seconds"]
    return records, (out / "net.safetensors").read_bytes(), (out / "best.safetensors").read_bytes()


def last_state(out, step):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((out / "checkpoints").resolve()) as manager:
        assert manager.latest_step() == step
        return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, small_task):
    out = tmp_path_factory.mktemp("undisturbed")
    train(out)
    return out


def test_a_run_stopped_three_times_ends_with_the_same_bits(tmp_path, undisturbed, capsys):
    stopped = interrupted_run(tmp_path, 3)
    assert stopped.exit_code == 130
    assert "interrupted after 3 of 15 steps" in str(stopped)
    assert str(tmp_path / "checkpoints" / "3") in str(stopped)
    # A process that is killed may leave a torn line, and ones of an epoch that is not in its last checkpoint.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "step": 5}\n{"epoch": 2, "st')
    interrupted_run(tmp_path, 5)  # an epoch's last step
    interrupted_run(tmp_path, 9)
    train(tmp_path)

    assert f"resume  {tmp_path / 'checkpoints' / '9'}, 9 of 15 steps are done" in capsys.readouterr().out
    ours, expected = results(tmp_path), results(undisturbed)
    assert ours[0][1:] == expected[0][1:]
    assert ours[1:] == expected[1:]
    ours, expected = last_state(tmp_path, 15), last_state(undisturbed, 15)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert ours["step"] == 15
