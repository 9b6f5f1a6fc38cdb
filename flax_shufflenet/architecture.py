"""The net as data: which ShuffleNetV2 this is, without any weights."""

import dataclasses
import json
from typing import Self

STAGE_BLOCKS = (3, 7, 3)

# 224 at size 2.0 is what the PyTorch seed has; the paper's own net has 244 there.
SEED_WIDTHS = {
    0.5: ((48, 96, 192), 1024),
    1.0: ((116, 232, 464), 1024),
    1.5: ((176, 352, 704), 1024),
    2.0: ((224, 488, 976), 2048),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every choice that shapes a ShuffleNetV2 and cannot be read off an array's values.

    Widths are channels. Stage ``s`` is one stride-2 down block followed by ``stage_blocks[s]``
    stride-1 basic blocks, all ``stage_widths[s]`` wide (Ma et al. 2018, table 5).
    ``split_ratio`` is the share of channels, rounded down, that a basic block passes on untouched
    (the paper's c'/c = 0.5). ``shuffle_groups`` is the number of groups of the channel shuffle.

    Raises:
        ValueError: a width, count or ratio with which the net cannot be built; the message says which.
    """

    stage_widths: tuple[int, ...]
    stage_blocks: tuple[int, ...] = STAGE_BLOCKS
    stem_width: int = 24
    last_width: int = 1024
    num_classes: int = 10
    split_ratio: float = 0.5
    shuffle_groups: int = 2

    def __post_init__(self) -> None:
        if len(self.stage_widths) != len(self.stage_blocks) or not self.stage_widths:
            raise ValueError(
                f"stage_widths {self.stage_widths} and stage_blocks {self.stage_blocks} "
                "must have the same number of stages, at least one"
            )
        for name in ("stem_width", "last_width", "num_classes", "shuffle_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.stage_blocks) < 0:
            raise ValueError(f"stage_blocks must not be negative: {self.stage_blocks}")
        for width, blocks in zip(self.stage_widths, self.stage_blocks, strict=True):
            if width < 2 or width % 2:
                raise ValueError(f"a stage width must be even, its two halves are concatenated: {width}")
            if width % self.shuffle_groups:
                raise ValueError(f"stage width {width} is not divisible by shuffle_groups {self.shuffle_groups}")
            if blocks and not 0 < self.passed_width(width) < width:
                raise ValueError(f"split_ratio {self.split_ratio} leaves one half of {width} channels empty")

    def passed_width(self, width: int) -> int:
        """Channels, of ``width``, that a basic block passes on untouched."""
        return int(width * self.split_ratio)

    def to_json(self) -> str:
        """One line of JSON that ``from_json`` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The architecture that ``to_json`` wrote.

        Raises:
            ValueError: not JSON, unknown or missing fields, values of another type, or an impossible net.
        """
        fields = json.loads(text)
        known = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != set(known):
            raise ValueError(f"an architecture has the fields {', '.join(known)}")
        for name, value in fields.items():
            if known[name] == tuple[int, ...]:
                if not isinstance(value, list) or not all(type(item) is int for item in value):
                    raise ValueError(f"{name} must be a list of integers, not {value!r}")
                fields[name] = tuple(value)
            elif type(value) is not known[name]:
                raise ValueError(f"{name} must be {known[name]}, not {value!r}")
        return cls(**fields)


def seed(net_size: float = 1.0, num_classes: int = 10) -> Architecture:
    """The PyTorch seed's net of one of its four sizes.

    Raises:
        ValueError: ``net_size`` is not 0.5, 1.0, 1.5 or 2.0.
    """
    if net_size not in SEED_WIDTHS:
        raise ValueError(f"net_size must be one of {', '.join(map(str, SEED_WIDTHS))}, not {net_size}")
    stage_widths, last_width = SEED_WIDTHS[net_size]
    return Architecture(stage_widths=stage_widths, last_width=last_width, num_classes=num_classes)
