"""The least that a train step moves through the device's memory, where each operation stands alone."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.case import IMAGE_SIDE
from flax_shufflenet.architecture import Architecture


class Unit(NamedTuple):
    """A convolution with its batch normalisation: values that go in and come out, for one image."""

    inputs: int
    outputs: int


def units(architecture: Architecture) -> Iterator[Unit]:
    """Every unit of a net of the seed's family, for images of 32x32."""
    side, width = IMAGE_SIDE, architecture.stem_width
    yield Unit(3 * side**2, width * side**2)
    for stage_width, blocks in zip(architecture.stage_widths, architecture.stage_blocks, strict=True):
        half, after = stage_width // 2, math.ceil(side / 2)
        before_area, area = side**2, after**2
        yield Unit(width * before_area, width * area)  # left: depthwise
        yield Unit(width * area, half * area)
        yield Unit(width * before_area, half * before_area)  # right
        yield Unit(half * before_area, half * area)
        yield Unit(half * area, half * area)
        for _ in range(3 * blocks):
            yield Unit(half * area, half * area)
        side, width = after, stage_width
    yield Unit(width * side**2, architecture.last_width * side**2)


def train_step_bytes(architecture: Architecture, batch: int, value_bytes: int) -> int:
    """Bytes read and written by a train step's convolutions and batch normalisations.

    Of each unit, x -> convolution -> y -> normalisation -> z: the convolution reads x and writes y; the statistics
    read y; the normalisation reads y and writes z; the two sums of its gradient read y and dz; its gradient reads y
    and dz and writes dy; the convolution's input gradient reads dy and writes dx; its kernel gradient reads x and dy.
    That is 3 passes over maps of the input's size and 11 over maps of the output's.
    """
    values = sum(3 * unit.inputs + 11 * unit.outputs for unit in units(architecture))
    return values * batch * value_bytes
