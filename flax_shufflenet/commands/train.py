"""``flax-shufflenet train`` and ``python train.py``: trains a ShuffleNetV2; ``--help`` lists the options."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Literal

from flax_shufflenet.commands import command_line
from flax_shufflenet.errors import OptionError, one_line
from flax_shufflenet.system import allocator, garbage, standard_streams
from flax_shufflenet.system.interruption import (
    Interrupted,
    handle_signals,
    lost_interrupts_come_again,
    raise_on_signals,
)
from flax_shufflenet.training.config import Config, ProcessOptions, RunOptions, TaskOptions, TrainingOptions
from flax_shufflenet.training.recipe import RECIPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CommandLine:
    """Trains ShuffleNetV2 and saves it as net.safetensors, with one line of JSON per epoch in metrics.jsonl."""

    recipe: Literal["published", "fast", "imagenet"] = "published"
    """Sets the defaults of the training options; `--recipe fast --help` shows them."""

    task: TaskOptions
    training: TrainingOptions
    run: RunOptions
    processes: ProcessOptions


def parse(arguments: Sequence[str], program: str = "python train.py") -> Config:
    """The run that a command line asks for; prints the help and exits where it asks for that.

    Raises:
        OptionError: an unknown option, or a value that it cannot have.
    """
    options = command_line.parse(_CommandLine, program, arguments, default=_defaults(arguments))
    groups = (options.task, options.training, options.run, options.processes)
    return Config(**{name: value for group in groups for name, value in vars(group).items()})


def _defaults(arguments: Sequence[str]) -> _CommandLine:
    """Every option's default, as the recipe that is asked for has it."""
    only_recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only_recipe.add_argument("--recipe", nargs="?")
    name = only_recipe.parse_known_args(arguments)[0].recipe
    if name not in RECIPES:  # none, or one that tyro will refuse
        name = "published"
    return _CommandLine(
        recipe=name,
        task=TaskOptions(),
        training=TrainingOptions(**RECIPES[name]),
        run=RunOptions(),
        processes=ProcessOptions(),
    )


def main(program: str = "flax-shufflenet train") -> int:
    """Returns the exit code: 0 done, 2 the command line is wrong, 130 or 143 interrupted, 1 anything else."""
    name = program.split()[-1]

    def exit_at_once(number: int, _: FrameType | None) -> None:
        # No exception: extension modules that are being imported would print it, and make an error of their own of it.
        interrupted = Interrupted(number)
        os.write(2, f"{name}: {interrupted}\n".encode())
        os._exit(interrupted.exit_code)

    garbage.collect_rarely()
    handle_signals(exit_at_once)
    with standard_streams.lasting():
        return _run(program, name)


def _run(program: str, name: str) -> int:
    signals: list[int] = []
    try:
        config = parse(sys.argv[1:], program)
        allocator.restart_with_fast_malloc()
        # Imported here: JAX takes seconds that --help and a mistyped option need not wait for.
        from flax_shufflenet.training.loop import train

        signals = raise_on_signals()
        with lost_interrupts_come_again():
            train(config)
        sys.stdout.flush()
    except OptionError as error:
        print(f"{name}: {error} (see --help)", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(f"{name}: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except Exception as error:  # whatever it is, users get one line
        if signals:  # what was interrupted made an error of its own of it
            print(f"{name}: {Interrupted(signals[0])}", file=sys.stderr)
            return Interrupted(signals[0]).exit_code
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 1
    return 0
