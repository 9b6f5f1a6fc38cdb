"""How a command is told what a net expects of its images, and how it says what it assumed."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

from tyro.conf import arg

from flax_shufflenet.errors import OptionError

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
