"""What the commands share: a dataclass as their command line, and one line for whatever goes wrong."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from flax_shufflenet.errors import OptionError, one_line
from flax_shufflenet.system import garbage, standard_streams
from flax_shufflenet.system.interruption import lost_interrupts_come_again

Options = TypeVar("Options")


def parse(options: type[Options], program: str, arguments: Sequence[str], default: Options | None = None) -> Options:
    """What a command line asks for; prints the help and exits where it asks for that.

    Raises:
        OptionError: an unknown option, a missing one, or a value that it cannot have.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                options,
                prog=program,
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                use_underscores=True,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        raise OptionError(_unboxed(complaint.getvalue())) from None


def _unboxed(box: str) -> str:
    """What tyro draws as a title, a complaint, a rule and advice, in a box or in ASCII: the complaint, in one line."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    below_title = itertools.dropwhile(_is_rule, lines)
    complaint = itertools.takewhile(lambda line: not _is_rule(line), below_title)
    return re.sub(r"^Error parsing (\w+: )?", "", " ".join(complaint))


def _is_rule(line: str) -> bool:
    return len(line) > 20 and set(line) <= {"─", "-"}


def run(
    program: str, options: type[Options], job: Callable[[Options], int], *, interrupted: str = "interrupted"
) -> int:
    """Runs a command, such as ``flax-shufflenet predict`` or ``python -m convert``, and returns its exit
    code: what ``job`` returns, 2 where the command line is wrong, 130 where it was ``interrupted``, which it says, 1
    for any other error; errors are one line on stderr."""
    name = re.split("[ .]", program)[-1]
    garbage.collect_rarely()
    with standard_streams.lasting():
        try:
            with lost_interrupts_come_again():
                code = job(parse(options, program, sys.argv[1:]))
            sys.stdout.flush()
            return code
        except OptionError as error:
            print(f"{name}: {error} (see --help)", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{name}: {interrupted}", file=sys.stderr)
            return 130
        except Exception as error:  # whatever it is, users get one line
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            return 1
