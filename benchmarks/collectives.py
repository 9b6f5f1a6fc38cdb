"""What devices tell each other in a compiled program: how often, and how many bytes."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"

# Result and kind of a collective; of an asynchronous one, the end, whose result is the collective's own.
_COLLECTIVE = re.compile(rf" = (.+?) ({_KINDS})(?:-done)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collectives(NamedTuple):
    """The number of collectives of one kind, and the bytes of their results on one device."""

    number: int
    bytes: int


def count_collectives(program: str) -> dict[str, Collectives]:
    """The collectives in a program's optimised HLO (``compiled.as_text()``), by kind."""
    found: dict[str, Collectives] = {}
    for shape, kind in _COLLECTIVE.findall(program):
        before = found.get(kind, Collectives(0, 0))
        found[kind] = Collectives(before.number + 1, before.bytes + array_bytes(shape))
    return found


def array_bytes(shape: str) -> int:
    """Of the arrays in a shape as HLO writes it, such as ``(f32[8,4]{1,0}, pred[])``."""
    total = 0
    for dtype, bits, sides in _ARRAY.findall(shape):
        size = 1 if dtype == "pred" else int(bits) // 8
        total += size * math.prod(int(side) for side in sides.split(",") if side)
    return total


def describe(found: Mapping[str, Collectives]) -> str:
    """For people, such as "165 all-reduce, 1.41 MB"."""
    return "; ".join(f"{some.number} {kind}, {some.bytes / 1e6:.2f} MB" for kind, some in found.items()) or "none"
