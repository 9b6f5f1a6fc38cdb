"""Trains ShuffleNetV2: ``python train.py --net_size 1.0``; ``--help`` lists the options."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence

import tyro

from flax_shufflenet.training import allocator
from flax_shufflenet.training.config import Config, OptionError, one_line


def parse(arguments: Sequence[str]) -> Config:
    """The run that a command line asks for; prints the help and exits where it asks for that.

    Raises:
        OptionError: an unknown option, or a value that it cannot have.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Config,
                prog="python train.py",
                args=arguments,
                use_underscores=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        raise OptionError(_unboxed(complaint.getvalue())) from None


def _unboxed(box: str) -> str:
    """What tyro draws as a box with a title, the complaint, a rule and advice: the complaint, in one line."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = next((number for number, line in enumerate(lines) if line.startswith("──")), len(lines))
    return re.sub(r"^Error parsing (Config: )?", "", " ".join(lines[:rule]))


def main() -> int:
    """Returns the exit code: 0 done, 2 the command line is wrong, 130 interrupted, 1 anything else."""
    try:
        config = parse(sys.argv[1:])
        allocator.restart_with_huge_pages()
        # Imported here: JAX takes seconds that --help and a mistyped option need not wait for.
        from flax_shufflenet.training.loop import train

        train(config)
    except OptionError as error:
        print(f"train.py: {error} (see --help)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted, no net was saved", file=sys.stderr)
        return 130
    except Exception as error:  # whatever it is, users get one line
        print(f"train.py: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
