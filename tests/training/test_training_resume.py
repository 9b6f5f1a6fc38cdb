"""A run that was stopped, damaged or changed, and then gone on with."""

import contextlib
import dataclasses
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_shufflenet import Architecture, ops
from flax_shufflenet.commands import command_line
from flax_shufflenet.datasets import data
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.images.options import ImageOptions
from flax_shufflenet.system.files import why_no_room
from flax_shufflenet.system.interruption import Interrupted, Interruption, lost_interrupts_come_again, raise_on_signals
from flax_shufflenet.training import loop
from flax_shufflenet.training.checkpoints import Checkpoints
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.identity import check_same
from flax_shufflenet.training.program import Program
from tests.net_tools import new_net
from tests.training.streamed_run import signal_at

# 5 steps in each of 3 epochs.
OPTIONS: dict[str, Any] = {
    "dataset": "digits",
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "optimizer": "muon",
    "ema": 0.9,
    "no_compilation_cache": True,  # conftest has one for all tests
}


TINY = Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)


@pytest.fixture(scope="module", autouse=True)
def small_task(small_dataset):
    """All runs here are of a tiny net on a tiny dataset."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(data, "load", lambda *_, **__: small_dataset)
        monkeypatch.setattr(loop, "initial_model", lambda *_: (new_net(TINY), "tiny"))
        monkeypatch.setattr(loop, "try_report", lambda *_: None)  # it has tests of its own
        yield


def train(out, **options):
    return loop.train(Config(out=out, **OPTIONS | options))


def interrupted_run(out, step, **options):
    with pytest.MonkeyPatch.context() as monkeypatch:
        signal_at(step, signal.SIGINT, monkeypatch)
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


@pytest.mark.slow
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


@pytest.fixture
def stopped_run(tmp_path, stopped):
    """A copy of a run of 15 steps that was stopped after the 12th; it has checkpoints after 10 and 12."""
    return shutil.copytree(stopped, tmp_path / "stopped")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, small_task):
    out = tmp_path_factory.mktemp("stopped")
    interrupted_run(out, 12)
    return out


def remove_record(checkpoint):
    shutil.rmtree(checkpoint / "record")


def cut_arrays(checkpoint):
    for path in checkpoint.glob("state/**/d/*"):
        path.write_bytes(path.read_bytes()[:100])


def change_a_parameter(checkpoint):
    """A whole checkpoint, but for a parameter that is not the one that was saved."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(checkpoint.parent.resolve()) as manager:
        items = manager.restore(
            int(checkpoint.name),
            args=ocp.args.Composite(state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore()),
        )
        items["state"]["parameters"][0] = items["state"]["parameters"][0] * 2
        manager.delete(int(checkpoint.name))
        manager.save(
            int(checkpoint.name),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(items["state"]), record=ocp.args.JsonSave(items["record"])
            ),
        )


@pytest.mark.parametrize("damage", [remove_record, cut_arrays, change_a_parameter])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(stopped_run, undisturbed, capsys, damage):
    damage(stopped_run / "checkpoints" / "12")
    train(stopped_run)
    output = capsys.readouterr().out
    assert f"{stopped_run / 'checkpoints' / '12'} is damaged (" in output
    assert "10 of 15 steps are done" in output
    assert {path.name for path in (stopped_run / "checkpoints").iterdir()} == {"5", "10", "15"}
    assert results(stopped_run)[1:] == results(undisturbed)[1:]


def test_where_every_checkpoint_is_damaged_nothing_is_lost(stopped_run):
    steps = sorted(int(path.name) for path in (stopped_run / "checkpoints").iterdir())
    assert steps == [5, 10, 12]  # the best, and the last two
    for step in steps:
        remove_record(stopped_run / "checkpoints" / str(step))
    before = {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=r"no checkpoint in .* can be read .*--force") as raised:
        train(stopped_run)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in stopped_run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0.02}, "--learning_rate is 0.02, but .* was started with 0.01"),
        ({"epochs": 4}, "--epochs is 4, but .* was started with 3"),
        ({"seed": 1}, "--seed is 1, but .* was started with 0"),
        ({"ema": 0.0}, "--ema is 0.0, but .* was started with 0.9"),
    ],
)
def test_a_changed_option_is_refused(stopped_run, options, said):
    with pytest.raises(TrainingError, match=said):
        train(stopped_run, **options)


def test_a_run_of_a_version_without_an_option_is_not_said_to_have_another_value_of_it(tmp_path):
    ours = {"options": {"seed": 0, "freeze": "none"}, "dataset": "hash"}
    with pytest.raises(TrainingError, match="is that of another version of this program: choose another --out"):
        check_same(ours, {"options": {"seed": 0}, "dataset": "hash"}, tmp_path)


def test_statistics_per_device_are_gone_on_with_on_as_many_devices(tmp_path):
    ours, theirs = ({"options": {}, "dataset": "hash", "devices": count} for count in (1, 4))
    said = "--batch_statistics per_device depends on the number of devices: here are 1, but .* was started on 4"
    with pytest.raises(TrainingError, match=said):
        check_same(ours, theirs, tmp_path)


def test_other_images_are_refused(stopped_run, small_dataset, monkeypatch):
    images = small_dataset.test_images.copy()
    images[3, 4, 5, 0] ^= 1
    monkeypatch.setattr(data, "load", lambda *_, **__: dataclasses.replace(small_dataset, test_images=images))
    with pytest.raises(TrainingError, match="the images of digits are not those"):
        train(stopped_run)


def test_force_starts_anew_and_leaves_foreign_files_alone(stopped_run, undisturbed, capsys):
    (stopped_run / "checkpoints" / "notes.txt").write_text("mine")
    (stopped_run / "report.md").write_text("another run's")
    train(stopped_run, force=True)
    assert "resume" not in capsys.readouterr().out
    assert (stopped_run / "checkpoints" / "notes.txt").read_text() == "mine"
    assert not (stopped_run / "report.md").exists()
    assert results(stopped_run)[1:] == results(undisturbed)[1:]


def test_a_net_that_no_run_left_is_not_replaced(stopped_run):
    (stopped_run / "net.safetensors").write_bytes(b"mine")
    with pytest.raises(TrainingError, match=r"net.safetensors exists, and is no net of a finished run: choose another"):
        train(stopped_run)
    assert (stopped_run / "net.safetensors").read_bytes() == b"mine"


def test_resume_insists_on_a_run_to_go_on_with(tmp_path):
    with pytest.raises(TrainingError, match="--resume: there is no checkpoint in"):
        train(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(OptionError, match="--resume"):
        Config(resume=True, force=True)


def test_names_are_printed_as_they_are(tmp_path, small_dataset, capsys, monkeypatch):
    named = dataclasses.replace(small_dataset, source="sets/[b]one")
    monkeypatch.setattr(data, "load", lambda *_, **__: named)
    with pytest.raises(TrainingError, match="--resume: there is no checkpoint in"):
        train(tmp_path / ":fire:", resume=True)
    out = capsys.readouterr().out
    assert "from sets/[b]one: " in out
    assert f"results {tmp_path / ':fire:'}\n" in out


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(stopped_run, monkeypatch):
    original = Program.step

    def step(self, state, order):
        if int(state.step) + 1 == 14:
            parameters = [leaf.at[(0,) * leaf.ndim].set(jnp.nan) for leaf in state.parameters]
            state = state._replace(parameters=parameters)
        return original(self, state, order)

    monkeypatch.setattr(Program, "step", step)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 14 \(epoch 3/3\): try a smaller") as raised:
        train(stopped_run)
    assert str(raised.value).endswith(f"the last good checkpoint is {stopped_run / 'checkpoints' / '12'}")


@pytest.mark.filterwarnings("ignore:overflow")
def test_an_epoch_that_leaves_no_finite_net_leaves_no_results(tmp_path):
    with pytest.raises(
        TrainingError, match=r"^the parameters are not finite after step 1: try .*there is no checkpoint$"
    ):
        train(tmp_path, learning_rate=1e39, batch_size=20)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_same_command_makes_a_report_that_is_missing(tmp_path, undisturbed, monkeypatch):
    out = shutil.copytree(undisturbed, tmp_path / "out")
    with pytest.raises(TrainingError, match=rf"^the run in {out} is finished, with a test accuracy of "):
        train(out, seed=1)
    monkeypatch.setattr(loop, "try_report", lambda folder, *_: (folder / "report.md").write_text("a report"))
    accuracy = train(out).accuracy
    assert (out / "report.md").read_text() == "a report"
    assert results(out) == results(undisturbed)
    # And another does not replace it by accident.
    said = f"the run in {out} is finished, with a test accuracy of {accuracy:.2%} after epoch 3: for another run, such "
    with pytest.raises(TrainingError, match=rf"^{re.escape(said)}as one of more --epochs, .*--force$"):
        train(out)


def test_going_on_without_the_engine_or_with_other_instructions_is_said(stopped_run, capsys, monkeypatch):
    before = json.loads((stopped_run / "metrics.jsonl").read_text().splitlines()[0])["engine"]
    monkeypatch.setattr(ops, "info", lambda: ops.Info(True, "abacus", ""))
    train(stopped_run)
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith("bits may differ")]
    assert said == [f"resume  engine was {before} and is abacus: bits may differ"]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(FloatingPointError, match="after step 7"):
            saved.save(7, {"parameters": jnp.array([1.0, jnp.inf])}, {})
        assert saved.latest_step() is None


def test_where_checkpoints_cannot_be_written_nothing_starts(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(FileExistsError, match="checkpoints"):
        train(tmp_path)


def test_a_write_that_fails_is_one_line(tmp_path, file_size_limit):
    state = {"parameters": jnp.asarray(np.random.default_rng(0).normal(size=30_000), jnp.float32)}
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
        saved.wait()
        with file_size_limit(20_000):
            saved.save(2, state, {})
            with pytest.raises(TrainingError, match=f"cannot save a checkpoint in {tmp_path}: ") as raised:
                saved.wait()
        # What Orbax does not wait for may come later.
        late = threading.Timer(0.2, (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir, [0o777, True])
        late.start()
    late.join()
    assert "\n" not in str(raised.value)
    assert why_no_room(raised.value) == "File too large"
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    with Checkpoints(tmp_path) as saved:
        restored = saved.restore(state, lambda _: None, print)
        assert restored is not None
        assert restored.step == 1


@pytest.mark.parametrize("limit", [2_000, 6_000])  # bytes: the metrics, the net or a checkpoint meet it
def test_a_disk_that_fills_up_costs_no_whole_checkpoint(tmp_path, undisturbed, monkeypatch, file_size_limit, limit):
    original = Program.step
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as full:

        def step(self, state, order):
            if int(state.step) + 1 == 8:
                while not (tmp_path / "checkpoints" / "5").exists():
                    time.sleep(0.01)
                full.enter_context(file_size_limit(limit))
            return original(self, state, order)

        patched.setattr(Program, "step", step)
        said = rf"^no room is left in {tmp_path} \(File too large\): make room, and the same command goes on from"
        with pytest.raises(TrainingError, match=said):
            train(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()] == ["5"]
    train(tmp_path)
    assert results(tmp_path)[1:] == results(undisturbed)[1:]


def test_the_second_signal_has_its_usual_effect():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert interruption.signal_number is None
        signal.raise_signal(signal.SIGTERM)
        assert interruption.signal_number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.signal_number is None
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted_while_collecting_garbage(number):
    """As JAX does, it has Python call something there; and then whoever was interrupted goes on, for a while."""

    def interrupt(phase, _):
        if threading.current_thread() is threading.main_thread():  # others collect garbage, too
            gc.callbacks.remove(interrupt)
            signal.raise_signal(number)

    gc.callbacks.append(interrupt)
    gc.collect()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_drops_comes_again(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        came = raise_on_signals()
        with lost_interrupts_come_again(), pytest.raises(Interrupted) as raised:
            interrupted_while_collecting_garbage(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert raised.value.exit_code == 128 + number
    assert len(came) > 1  # those that came again and met the same callbacks were dropped, too
    assert set(came) == {number}


DROPPING = """
import sys
from pathlib import Path

told = []
sys.unraisablehook = lambda dropped: told.append(str(dropped.exc_value))

from flax_shufflenet.training.checkpoints import Checkpoints
from flax_shufflenet.system.interruption import lost_interrupts_come_again

class Dropping:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error

with lost_interrupts_come_again():
    with Checkpoints(Path(sys.argv[1])):
        pass
    Dropping(ValueError("during the run"))
    Dropping(RuntimeError("Event loop is closed"))
Dropping(RuntimeError("Event loop is closed"))
Dropping(KeyboardInterrupt("after the run"))
print(told)
"""


def test_other_dropped_exceptions_are_told_as_before_and_late_reads_never(tmp_path):
    result = subprocess.run([sys.executable, "-c", DROPPING, str(tmp_path)], capture_output=True, text=True, check=True)
    assert result.stdout == "['during the run', 'after the run']\n"
    assert result.stderr == ""


def test_a_command_ends_by_an_interrupt_that_python_drops(capsys, monkeypatch):
    def job(_: ImageOptions) -> int:
        interrupted_while_collecting_garbage(signal.SIGINT)
        return 0

    monkeypatch.setattr(sys, "argv", ["predict"])
    assert command_line.run("python -m some.predict", ImageOptions, job) == 130
    assert capsys.readouterr().err == "predict: interrupted\n"
