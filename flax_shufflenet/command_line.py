"""What the commands share: a dataclass as their command line, and one line for whatever goes wrong."""

import contextlib
import dataclasses
import io
import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import tyro
from tyro.conf import arg

from flax_shufflenet import standard_streams
from flax_shufflenet.training.config import OptionError, one_line
from flax_shufflenet.training.interruption import lost_interrupts_come_again

Options = TypeVar("Options")

_FROM_FILE = "(default: as the net's file says)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What a net expects of its images, where its file does not say, or says something else.

    Raises:
        OptionError: a value out of its range.
    """

    size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint=_FROM_FILE)] = None
    """Side of the images that the net takes, in pixels."""

    mean: Annotated[tuple[float, float, float] | None, arg(metavar="R G B", help_behavior_hint=_FROM_FILE)] = None
    """Mean of the red, green and blue values, between 0 and 1, that is subtracted."""

    std: Annotated[tuple[float, float, float] | None, arg(metavar="R G B", help_behavior_hint=_FROM_FILE)] = None
    """Standard deviation of these values, which they are divided by."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise OptionError(f"--size must be at least 1, not {self.size}")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise OptionError(f"--mean must be three finite numbers, not {self.mean}")
        if self.std is not None and not all(value > 0 and math.isfinite(value) for value in self.std):
            raise OptionError(f"--std must be three finite numbers above 0, not {self.std}")
        _refuse_values_to_255(self.mean, self.std)


def _refuse_values_to_255(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Such as Caffe's and OpenMMLab's: no mean and no deviation of values from 0 to 1 is above 1."""
    if max([*(mean or ()), *(std or ())], default=0) <= 1:
        return
    # Beside such means, deviations of 1 leave the values' range as it is; smaller ones are of values from 0 to 1.
    std_over = 255 if std and max(std) >= 1 else 1
    raise OptionError(
        f"{_as_options(mean, std)}: for values from 0 to 255, but here values lie between 0 and 1; divided by 255: "
        f"{_as_options(mean, std, 255, std_over)}"
    )


def _as_options(
    mean: Sequence[float] | None, std: Sequence[float] | None, mean_over: int = 1, std_over: int = 1
) -> str:
    given = (("--mean", mean, mean_over), ("--std", std, std_over))
    return " ".join(
        f"{name} {' '.join(f'{value / divisor:.6g}' for value in values)}" for name, values, divisor in given if values
    )


def note(assumed: Mapping[str, str], options: ImageOptions) -> None:
    """Says on stderr, beside the results, what was assumed, and which of the command's options change it."""
    options_for = {"normalisation": ("mean", "std"), "image size": ("size",), "class names": ("classes",)}
    for name, what in assumed.items():
        names = [f"--{option}" for option in options_for.get(name, ()) if hasattr(options, option)]
        advice = f" ({' and '.join(names)} to change it)" if names else ""
        print(f"assumed {name}: {what}{advice}", file=sys.stderr)


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
    """Runs a command, such as ``python -m flax_shufflenet.predict`` or ``python -m convert``, and returns its exit
    code: what ``job`` returns, 2 where the command line is wrong, 130 where it was ``interrupted``, which it says, 1
    for any other error; errors are one line on stderr."""
    name = re.split("[ .]", program)[-1]
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
