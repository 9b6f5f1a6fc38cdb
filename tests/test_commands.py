"""``flax-shufflenet COMMAND``: every command is there, under the name that its help and its errors have."""

import subprocess
import sys
from pathlib import Path

import pytest

from flax_shufflenet.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flax_shufflenet", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_lists_every_command():
    listed = run("--help")
    assert listed.returncode == 0
    for name, (_, does) in COMMANDS.items():
        assert f"  {name:10}{does}\n" in listed.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_and_refuses_what_it_does_not_know(name):
    asked = run(name, "--help")
    assert asked.returncode == 0, asked.stderr
    assert f"flax-shufflenet {name}" in asked.stdout.splitlines()[0]
    refused = run(name, "--no_such_option")
    assert refused.returncode == 2
    assert f"{name}: " in refused.stderr


@pytest.mark.parametrize(("arguments", "said"), [([], "no command"), (["preditc"], "'preditc' is no command")])
def test_an_unknown_command_is_one_line(arguments, said):
    refused = run(*arguments)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"flax-shufflenet: {said}; there are train, predict, evaluate, export, compare, convert (see --help)\n"
    )
