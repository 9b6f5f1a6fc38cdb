"""Whole modules, as ``torch.save(net)`` pickles them: their tensors, and what their layers say of the graph.

A pickled module is a tree of objects whose ``_parameters``, ``_buffers`` and ``_modules`` hold its tensors and parts.
``convert.files.inert_pickle`` stands in for those objects without importing their classes, so nothing of them runs, and
what the module computes in its ``forward`` is not in the file. Its layers are: they tell strides, the
pooling of the stem, activations and the epsilon of batch normalisations, none of which a state_dict tells.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from convert.errors import ConvertError, printable
from convert.files.inert_pickle import StandIn
from convert.files.module_names import Names
from convert.layouts import Layout
from flax_shufflenet import Architecture

_MAX_DEPTH = 8
_ACTIVATIONS = "torch.nn.modules.activation."
_MAX_POOL = "torch.nn.modules.pooling.MaxPool2d"


class WholeModule(dict[str, torch.Tensor]):
    """A module's tensors under the names of its ``state_dict()``; ``parts`` are its modules, by name."""

    def __init__(self, module: StandIn, names: Names) -> None:
        super().__init__()
        self.class_name = module.class_name
        self.parts: dict[str, StandIn] = {}
        pending = [("", module)]
        while pending:
            prefix, part = pending.pop()
            names.enter(prefix)
            self.parts[prefix.removesuffix(".")] = part
            passing = part.attributes.get("_non_persistent_buffers_set")
            for kind in ("_parameters", "_buffers"):
                for name, value in names.of(prefix, part.attributes[kind]):
                    own = name.removeprefix(prefix)
                    kept = kind == "_parameters" or not isinstance(passing, set) or own not in passing
                    if isinstance(value, torch.Tensor) and kept:
                        self[name] = value
            children = [
                (f"{name}.", value)
                for name, value in names.of(prefix, part.attributes["_modules"])
                if isinstance(value, StandIn) and value.is_module
            ]
            pending += reversed(children)


def unfold(content: Any) -> Any:
    """The same content with each module in its containers as a ``WholeModule``.

    Raises:
        ConvertError: a module of endlessly many modules.
    """
    made: dict[int, Any] = {}
    names = Names()

    def unfolded(value: Any, depth: int) -> Any:
        if id(value) in made:
            return made[id(value)]
        result = value
        if isinstance(value, StandIn) and value.is_module:
            result = WholeModule(value, names)
        elif depth < _MAX_DEPTH and type(value) is dict:
            result = made[id(value)] = {}
            result.update({key: unfolded(item, depth + 1) for key, item in value.items()})
        elif depth < _MAX_DEPTH and isinstance(value, list | tuple):
            made[id(value)] = value  # where it contains itself
            items = [unfolded(item, depth + 1) for item in value]
            result = items if isinstance(value, list) else tuple(items)
        made[id(value)] = result
        return result

    return unfolded(content, 0)


def stem_of(module: WholeModule, layout: Layout, prefix: str) -> tuple[int | None, bool]:
    """The stride of the first convolution, None if its layer does not say; and whether a max-pool follows it."""
    stem = module.parts.get(prefix + layout.stem[0])
    stride = None if stem is None else _both(stem.attributes.get("stride"))
    return stride, any(True for _ in _max_pools(module, layout, prefix))


def apply_to(
    module: WholeModule, layout: Layout, architecture: Architecture, prefix: str
) -> tuple[Architecture, list[str]]:
    """The architecture with what the module's layers tell, and lines for the report.

    Raises:
        ConvertError: a layer computes what no net of this layout does.
    """
    notes = [
        f"module: of class {printable(module.class_name, 100)}, which is unknown here; nothing of it ran, "
        "the layout was found by the names of its tensors"
    ]
    own = layout.root
    epsilons = set()
    for part in layout.parts_of(architecture):
        conv = module.parts.get(prefix + part.conv.removeprefix(own))
        bn = module.parts.get(prefix + part.bn.removeprefix(own))
        if conv is not None:
            _check_convolution(part.conv, conv, _stride(part.flax, architecture))
        if bn is not None and isinstance(bn.attributes.get("eps"), float):
            epsilons.add(bn.attributes["eps"])
    if len(epsilons) > 1:
        raise ConvertError(
            f"its batch normalisations add {_listed(epsilons)} to the variance; they have to add the same"
        )
    changes: dict[str, Any] = {}
    for epsilon in epsilons - {architecture.bn_epsilon}:
        changes["bn_epsilon"] = epsilon
    if epsilons:
        notes.append(f"epsilon: {_listed(epsilons)} in all batch normalisations, as the module has it")
    slopes = _slopes(module, layout, architecture, prefix)
    if len(slopes) > 1:
        raise ConvertError(f"its activations have the slopes {_listed(slopes)} below zero; they have to have the same")
    for slope in slopes - {architecture.negative_slope}:
        if "negative_slope" not in layout.options:
            raise ConvertError(f"its LeakyReLUs have slope {slope:g}; the {layout.name} layout's nets have ReLUs")
        changes["negative_slope"] = slope
    if slopes:
        (slope,) = slopes
        notes.append(f"rectifier: {f'LeakyReLU of slope {slope:g}' if slope else 'ReLU'}, as the module has it")
    if "shuffle" in layout.options and (shuffles := _shuffles(module, prefix)):
        if len(shuffles) > 1:
            raise ConvertError("its blocks shuffle in two ways; they have to shuffle in one")
        (changes["shuffle"],) = shuffles
        notes.append(f"shuffle: {changes['shuffle']}, as the module has it")
    pools = list(_max_pools(module, layout, prefix))
    for name, pool in pools:
        _check_max_pool(name, pool, architecture)
    if architecture.stem_pool and not pools and "stem_pool" not in layout.options:
        raise ConvertError(
            "no max-pool is among the module's layers, and nets of this layout have one behind the first convolution; "
            "if its forward pools there, save its state_dict() and convert that"
        )
    try:
        return dataclasses.replace(architecture, **changes), notes
    except ValueError as error:
        raise ConvertError(f"no ShuffleNetV2 has these layers: {error}") from None


def _listed(numbers: set[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(numbers)[:4])


def _both(value: Any) -> int | None:
    """One number for height and width, which PyTorch's layers keep as one or as two; None if it is another thing."""
    values = value if isinstance(value, tuple) else (value,)
    one = values[0] if values else None
    return one if type(one) is int and all(type(other) is int and other == one for other in values) else None


def _stride(flax_name: str, architecture: Architecture) -> int:
    if flax_name == "stem":
        return architecture.stem_stride
    return 2 if flax_name.endswith((".left.0", ".right.1")) else 1


def _check_convolution(name: str, conv: StandIn, stride: int) -> None:
    kernel = _both(conv.attributes.get("kernel_size"))
    mode = conv.attributes.get("padding_mode", "zeros")
    if mode != "zeros":
        raise ConvertError(
            f"its convolution {name} has padding_mode {_shown(mode)}; nets here have zeros, and it is another function "
            "with the same tensors"
        )
    expected = {"stride": stride, "dilation": 1, "padding": None if kernel is None else (kernel - 1) // 2}
    for attribute, value in expected.items():
        found = conv.attributes.get(attribute)
        if found is not None and value is not None and _both(found) != value:
            raise ConvertError(
                f"its convolution {name} has {attribute} {_shown(found)}; nets of this layout have {value}, and it is "
                "another function with the same tensors"
            )


def _shown(value: Any) -> str:
    return printable(str(value), 40) if isinstance(value, int | str | tuple) else type(value).__name__


def _max_pools(module: WholeModule, layout: Layout, prefix: str) -> Iterator[tuple[str, StandIn]]:
    """The max-pools that stand beside or around the stem or the stages, and not in a detector's other parts."""
    beside = {*_around(layout.stem[0]), *_around(layout.block_name(0, 0, 0).removeprefix(layout.root))}
    for name, part in module.parts.items():
        if name.startswith(prefix) and part.class_name == _MAX_POOL and _parent(name.removeprefix(prefix)) in beside:
            yield name, part


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _around(name: str) -> Iterator[str]:
    """Every module that the one of this name is in, the outermost last, whose name is empty."""
    while name:
        name = _parent(name)
        yield name


def _check_max_pool(name: str, pool: StandIn, architecture: Architecture) -> None:
    ceil = architecture.stem_pool_ceil
    expected = {"kernel_size": 3, "stride": 2, "padding": 0 if ceil else 1, "dilation": 1}
    for attribute, value in expected.items():
        found = pool.attributes.get(attribute)
        if found is not None and _both(found) != value:
            raise ConvertError(
                f"its max-pool {name} has {attribute} {_shown(found)}; nets of this layout have {value}, and it is "
                "another function with the same tensors"
            )
    if pool.attributes.get("ceil_mode", ceil) is not ceil:
        raise ConvertError(f"its max-pool {name} has ceil_mode {not ceil}; nets of this layout have {ceil}")


def _shuffles(module: WholeModule, prefix: str) -> set[str]:
    """By pytorchcv's classes for it."""
    kinds = {"ChannelShuffle": "after", "ChannelShuffle2": "reverse"}
    classes = (part.class_name.rpartition(".")[2] for name, part in module.parts.items() if name.startswith(prefix))
    return {kinds[name] for name in classes if name in kinds}


def _slopes(module: WholeModule, layout: Layout, architecture: Architecture, prefix: str) -> set[float]:
    """Below zero, of the activations beside the backbone's convolutions; 0 is a ReLU's.

    Raises:
        ConvertError: another kind of activation.
    """
    own = {_parent(part.conv.removeprefix(layout.root)) for part in layout.parts_of(architecture)} - {""}
    slopes = set()
    for name, part in module.parts.items():
        if not part.class_name.startswith(_ACTIVATIONS) or not name.startswith(prefix):
            continue
        if _parent(name.removeprefix(prefix)) not in own:
            continue
        kind, slope = part.class_name.removeprefix(_ACTIVATIONS), part.attributes.get("negative_slope")
        if kind == "ReLU":
            slopes.add(0.0)
        elif kind == "LeakyReLU" and isinstance(slope, int | float):
            slopes.add(float(slope))
        else:
            raise ConvertError(
                f"its activation {name} is {printable(kind, 40)}; ShuffleNetV2 has ReLU or LeakyReLU, and with this "
                "one the same tensors make another function"
            )
    return slopes
