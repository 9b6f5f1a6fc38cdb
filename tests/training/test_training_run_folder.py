"""The folder of a run's results: one run at a time writes there."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flax_shufflenet.errors import TrainingError
from flax_shufflenet.training import loop, run_folder
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.run_folder import LOCK_FILE, claim, full_disk_is_one_line

RUNNING = """
import sys
import tempfile
from pathlib import Path
from pathlib import Path
from flax_shufflenet.training.run_folder import claim

with claim(Path(sys.argv[1]), print):
    print("running", flush=True)
    sys.stdin.read()
"""


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def running(tmp_path):
    """Another process whose run is going on in the folder ``out``."""
    command = [sys.executable, "-c", RUNNING, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert first_line(process) == "running\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_the_first_ones_process(tmp_path, running):
    out = tmp_path / "out"
    said = rf"^another run is writing to {re.escape(str(out))} \(process {running.pid} on .+\): wait for it, or choose "
    for force in (False, True):
        with pytest.raises(TrainingError, match=said):
            loop.train(Config(out=out, dataset="digits", net_size=0.5, force=force))
    assert [path.name for path in out.iterdir()] == [LOCK_FILE]


def test_a_run_that_was_killed_keeps_nobody_out(tmp_path, running):
    running.kill()
    running.wait()
    assert (tmp_path / "out" / LOCK_FILE).exists()
    with claim(tmp_path / "out", print):
        assert f"process {os.getpid()} on " in (tmp_path / "out" / LOCK_FILE).read_text()
    assert not (tmp_path / "out" / LOCK_FILE).exists()


def test_only_one_of_many_that_start_together_gets_the_folder(tmp_path):
    command = [sys.executable, "-c", RUNNING, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    refused = [process for process in processes if first_line(process) != "running\n"]
    assert len(refused) == 3
    for process in processes:
        _, stderr = process.communicate()
        assert ("another run is writing" in stderr) == (process in refused)


def test_where_there_are_no_locks_the_run_goes_on_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "fcntl", None)
    said = []
    with claim(tmp_path, said.append):
        pass
    assert len(said) == 1
    assert str(tmp_path) in said[0]


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with claim(tmp_path / "a" / "b", print):
        pass
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path / "a" / "b", print):
        (tmp_path / "a" / "b" / "net").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["net"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for out, said in (
        (tmp_path / "file", "is a file: choose another"),
        (tmp_path / "file" / "out", r"cannot be written \(Not a directory\): choose another"),
    ):
        with pytest.raises(TrainingError, match=f"^--out {re.escape(str(out))} {said}"):
            loop.train(Config(out=out, dataset="digits", net_size=0.5))


def test_a_folder_without_write_permission_is_one_line():
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o555)
        try:
            if user == 0:  # who may write everywhere
                os.seteuid(65534)
            for out in (Path(folder), Path(folder) / "out"):
                said = rf"^--out {re.escape(str(out))} cannot be written \(Permission denied\): choose another"
                with pytest.raises(TrainingError, match=said):
                    loop.train(Config(out=out, dataset="digits", net_size=0.5))
        finally:
            os.seteuid(user)


def test_what_fails_on_a_full_disk_is_one_line(tmp_path, file_size_limit):
    said = f"^no room is left in {re.escape(str(tmp_path))} \\(File too large\\): make room$"
    with pytest.raises(TrainingError, match=said), full_disk_is_one_line(tmp_path, "make room"), file_size_limit(10):
        (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(ValueError, match="another"), full_disk_is_one_line(tmp_path, "make room"):
        raise ValueError("another")
