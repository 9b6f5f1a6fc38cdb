"""The net as data: which ShuffleNetV2 this is, without any weights."""

import dataclasses
import json
from typing import Any, Literal, get_args, get_origin

# 224 at size 2.0 is a copied typo for 244, the paper's width, but it is what the seed and some others have.
_WIDTHS = {
    0.5: ((48, 96, 192), 1024),
    1.0: ((116, 232, 464), 1024),
    1.5: ((176, 352, 704), 1024),
    2.0: ((244, 488, 976), 2048),
}
_WIDTHS_224 = {**_WIDTHS, 2.0: ((224, 488, 976), 2048)}

_IMAGENET_STEM = {"stem_stride": 2, "stem_pool": True}

# What each family of implementations computes, as differences from Architecture's defaults.
_FAMILIES: dict[str, dict[str, Any]] = {
    "seed": {"down_relu": False},
    "kuangliu": {"pool_size": 4},
    "chenyaofo": {},
    "torchvision": {"num_classes": 1000, **_IMAGENET_STEM},
    "weiaicunzai": {"num_classes": 100, "stem_relu": False, "conv_bias": True, "down_middle": "input"},
    "megvii": {
        "num_classes": 1000,
        "down_left": "input",
        "shuffle": "before",
        "pool_size": 7,
        "head_bias": False,
        **_IMAGENET_STEM,
    },
    "ericsun99": {"num_classes": 1000, "pool_size": 7, **_IMAGENET_STEM},
    "mmpretrain": {"num_classes": 1000, **_IMAGENET_STEM},
    "super_gradients": {"num_classes": 1000, **_IMAGENET_STEM},
    "birder": {"num_classes": 1000, **_IMAGENET_STEM},
    "pytorchcv": {"num_classes": 1000, "stem_pool_ceil": True, "pool_size": 7, **_IMAGENET_STEM},
    "pytorchcv_b": {"num_classes": 1000, "down_left": "input", "pool_size": 7, **_IMAGENET_STEM},
    # Backbones of detectors.
    "nanodet": {"num_classes": 0, "negative_slope": 0.1, **_IMAGENET_STEM},
    "fastestdet": {"num_classes": 0, "down_left": "input", "shuffle": "before", **_IMAGENET_STEM},
    "openpifpaf": {"num_classes": 0, "bn_epsilon": 1e-4, "stem_stride": 2, "down_kernel": 5, "basic_kernel": 5},
    "yolov5lite": {"num_classes": 0, "bn_epsilon": 1e-3, **_IMAGENET_STEM},
}
FAMILIES = tuple(_FAMILIES)

_WITHOUT_LAST_CONVOLUTION = ("nanodet", "fastestdet", "yolov5lite")
_STEM_WIDTHS = {"yolov5lite": 32}

# pytorchcv scales the last convolution like the stages: int(1024 * 44 / 29) and int(1024 * 61 / 29).
_PYTORCHCV_LAST_WIDTHS = {1.5: 1553, 2.0: 2153}

# Files that were written before these fields existed lack them, and mean their defaults.
_ADDED_LATER = {"stem_pool_ceil", "negative_slope", "bn_epsilon", "stem_kernel", "down_kernel", "basic_kernel"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every choice that shapes a ShuffleNetV2 (Ma et al. 2018), and the differences between its families.

    Raises:
        ValueError: a width, count, ratio or choice with which the net cannot be built; the message says which.
    """

    stage_widths: tuple[int, ...]
    """Channels of each stage."""
    stage_blocks: tuple[int, ...] = (3, 7, 3)
    """Stride-1 basic blocks in each stage, after its stride-2 down block."""
    stem_width: int = 24
    stem_kernel: int = 3
    """Side of the stem's kernel, odd, as those of the blocks' depthwise kernels below."""
    stem_stride: int = 1
    stem_pool: bool = False
    """A 3x3 max-pool of stride 2 after the stem, as for ImageNet."""
    stem_pool_ceil: bool = False
    """The max-pool starts at the first pixel, without padding, and its last window may be cut off (PyTorch's
    ``padding=0, ceil_mode=True``); otherwise it is padded by one pixel on all sides."""
    stem_relu: bool = True
    last_width: int = 1024
    """Channels of the last 1x1 convolution, which are the features. 0: there is none, the net ends after its last
    stage, as detectors' backbones do."""
    num_classes: int = 10
    """0 for a backbone, which returns the pooled features."""
    split_ratio: float = 0.5
    """Share of the channels, rounded down, that a basic block passes on untouched (the paper's c'/c)."""
    shuffle_groups: int = 2
    shuffle: Literal["after", "before", "reverse"] = "after"
    """"after": each block shuffles its result. "before": each basic block takes its own input apart, the even
    channels passing and the odd ones going through the branch (the paper authors' code). "reverse": each block
    shuffles its result the other way round, the even channels first, then the odd ones (pytorchcv's shufflenetv2b
    with ``shuffle_group_first=False``)."""
    down_relu: bool = True
    """ReLUs after the 1x1 convolutions of down blocks; the seed has none."""
    down_left: Literal["half", "input"] = "half"
    """Width of a down block's left branch: half the stage's, or its input's; the right one has the rest."""
    down_middle: Literal["half", "input"] = "half"
    """Width inside a down block's right branch."""
    down_kernel: int = 3
    basic_kernel: int = 3
    conv_bias: bool = False
    """Convolutions carry a bias, which the batch normalisation after them takes out again in training."""
    negative_slope: float = 0.0
    """0: ReLUs. Otherwise LeakyReLUs of this slope below zero in the place of all of them."""
    bn_epsilon: float = 1e-5
    """What batch normalisations add to the variance."""
    pool_size: int = 0
    """0: global average pooling. Otherwise the window of the last average pooling, which must leave one value."""
    dropout: float = 0.0
    """Share of the features that is dropped before the classifier in train mode."""
    head_bias: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(choices)}, not {value!r}")
            if field.type is float:  # NumPy's have a dtype, and would compute in it
                object.__setattr__(self, field.name, float(value))
        if len(self.stage_widths) != len(self.stage_blocks) or not self.stage_widths:
            raise ValueError(
                f"stage_widths {self.stage_widths} and stage_blocks {self.stage_blocks} "
                "must have the same number of stages, at least one"
            )
        for name, least in {
            "stem_width": 1,
            "stem_stride": 1,
            "last_width": 0,
            "num_classes": 0,
            "shuffle_groups": 1,
            "pool_size": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("stem_kernel", "down_kernel", "basic_kernel"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd and at least 1, not {getattr(self, name)}")
        if min(self.stage_blocks) < 0:
            raise ValueError(f"stage_blocks must not be negative: {self.stage_blocks}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if not 0 <= self.negative_slope < 1:
            raise ValueError(f"negative_slope must be at least 0 and below 1, not {self.negative_slope}")
        if not 0 < self.bn_epsilon < 1:
            raise ValueError(f"bn_epsilon must be above 0 and below 1, not {self.bn_epsilon}")
        if self.stem_pool_ceil and not self.stem_pool:
            raise ValueError("stem_pool_ceil says how the max-pool of the stem ends, and this net has none")
        if self.shuffle == "before" and (self.split_ratio, self.shuffle_groups) != (0.5, 2):
            raise ValueError(
                "a shuffle before the block takes even and odd channels: split_ratio 0.5, shuffle_groups 2"
            )
        width_before = self.stem_width
        for width, blocks in zip(self.stage_widths, self.stage_blocks, strict=True):
            if width < 2 or width % 2:
                raise ValueError(f"a stage width must be even, its two halves are concatenated: {width}")
            if width % self.shuffle_groups:
                raise ValueError(f"stage width {width} is not divisible by shuffle_groups {self.shuffle_groups}")
            if blocks and not 0 < self.passed_width(width) < width:
                raise ValueError(f"split_ratio {self.split_ratio} leaves one half of {width} channels empty")
            if self.down_left == "input" and width <= width_before:
                raise ValueError(f"stage width {width} leaves nothing beside a left branch of {width_before}")
            width_before = width

    @property
    def shrinking(self) -> int:
        """Pixels of the image for each value of the last feature map, in either direction."""
        return self.stem_stride * (2 if self.stem_pool else 1) * 2 ** len(self.stage_widths)

    def passed_width(self, width: int) -> int:
        """Channels, of ``width``, that a basic block passes on untouched."""
        return int(width * self.split_ratio)

    @property
    def features_width(self) -> int:
        """Numbers that the classifier sees of an image."""
        return self.last_width or self.stage_widths[-1]

    def to_json(self) -> str:
        """One line of JSON that ``from_json`` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """The architecture that ``to_json`` wrote.

        Raises:
            ValueError: not JSON, unknown or missing fields, values of another type, or an impossible net. Fields
                that did not exist when the file was written have their defaults.
        """
        try:
            fields = json.loads(text)
        except RecursionError:
            raise ValueError("lists within lists beyond all measure") from None
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or not set(types) - _ADDED_LATER <= set(fields) <= set(types):
            raise ValueError(f"an architecture has the fields {', '.join(types)}")
        for name, value in fields.items():
            if types[name] == tuple[int, ...]:
                if not isinstance(value, list) or not all(type(item) is int for item in value):
                    raise ValueError(f"{name} must be a list of integers, not {value!r}")
                fields[name] = tuple(value)
            elif choices := get_args(types[name]):
                if value not in choices:
                    raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
            elif type(value) is not types[name]:
                raise ValueError(f"{name} must be {types[name]}, not {value!r}")
        try:
            return cls(**fields)
        except OverflowError as error:
            raise ValueError(f"a width beyond all measure ({error})") from None


def family_fields(family: str) -> dict[str, Any]:
    """The fields that say what a family's nets compute, whatever their widths, depths and classes.

    Raises:
        ValueError: no such family.
    """
    if family not in _FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family}")
    defaults = {
        name: Architecture.__dataclass_fields__[name].default
        for name in (
            "stem_kernel",
            "stem_stride",
            "stem_pool",
            "stem_pool_ceil",
            "stem_relu",
            "shuffle",
            "down_relu",
            "down_left",
            "down_middle",
            "down_kernel",
            "basic_kernel",
            "conv_bias",
            "negative_slope",
            "bn_epsilon",
            "pool_size",
            "head_bias",
        )
    }
    return {**defaults, **{name: value for name, value in _FAMILIES[family].items() if name != "num_classes"}}


def preset(family: str, net_size: float = 1.0, num_classes: int | None = None) -> Architecture:
    """The net of one of ``FAMILIES`` and one size, with the family's own class count unless given.

    Raises:
        ValueError: an unknown family, or ``net_size`` is not 0.5, 1.0, 1.5 or 2.0.
    """
    fields = family_fields(family)
    table = _WIDTHS_224 if family in ("seed", "kuangliu", "ericsun99") else _WIDTHS
    if net_size not in table:
        raise ValueError(f"net_size must be one of {', '.join(map(str, table))}, not {net_size}")
    stage_widths, last_width = table[net_size]
    if family in _WITHOUT_LAST_CONVOLUTION:
        last_width = 0
    elif family in ("pytorchcv", "pytorchcv_b"):
        last_width = _PYTORCHCV_LAST_WIDTHS.get(net_size, last_width)
    dropout = 0.2 if family == "megvii" and net_size == 2.0 else 0.0
    return Architecture(
        stage_widths=stage_widths,
        stem_width=_STEM_WIDTHS.get(family, 24),
        last_width=last_width,
        num_classes=_FAMILIES[family].get("num_classes", 10) if num_classes is None else num_classes,
        dropout=dropout,
        **fields,
    )


def seed(net_size: float = 1.0, num_classes: int = 10) -> Architecture:
    """The PyTorch seed's net of one of its four sizes.

    Raises:
        ValueError: ``net_size`` is not 0.5, 1.0, 1.5 or 2.0.
    """
    return preset("seed", net_size, num_classes)
