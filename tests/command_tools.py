"""A command of the library, run in this process."""

import sys
from unittest.mock import patch

from flax_shufflenet.commands import command_line


def run_command(capsys, module, *arguments):
    """``flax-shufflenet NAME``: the exit code, standard output, and the lines of standard error."""
    name = module.__name__.rpartition(".")[2]
    with patch.object(sys, "argv", [name, *map(str, arguments)]):
        code = command_line.run(f"flax-shufflenet {name}", module.Options, getattr(module, name))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()
