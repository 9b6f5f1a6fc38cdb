"""``python -m benchmarks.layouts``: files as people have them, and what ``python -m convert`` does with each.

Every net has the widths and depths of its layout's smallest one, random weights and random running statistics, in the
wrapper in which such files are found. What is converted is proven by running both nets, as always; the table says how
far apart they were in float64, and in float32 as a multiple of PyTorch's own error.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from convert import ConvertError
from convert.files.read import read
from convert.layouts import LAYOUTS
from convert.pipeline import convert_source
from flax_shufflenet import preset
from torch_ref.randomise import randomise

Tensors = dict[str, torch.Tensor]

_BACKBONE = {"backbone": True}


class Case(NamedTuple):
    """A file's content, made when it is wanted, and the options that it is converted with."""

    name: str
    make: Callable[[], Any]
    options: dict[str, Any]


def net_of(layout: str, num_classes: int | None = None) -> nn.Module:
    """A layout's smallest net, with random weights and statistics."""
    return randomise(LAYOUTS[layout].build_reference(preset(layout, 0.5, num_classes)))


def tensors_of(layout: str, num_classes: int | None = None) -> Tensors:
    """Its state_dict."""
    return dict(net_of(layout, num_classes).state_dict())


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """The same tensors, each name after a prefix."""
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def other_tensors(*names: str) -> Tensors:
    """Kernels of these names that are no ShuffleNetV2's."""
    return {name: torch.ones(4, 4, 1, 1) for name in names}


def _distilled() -> dict[str, Any]:
    net = LAYOUTS["kuangliu"].build_reference(dataclasses.replace(preset("kuangliu", 0.5, 100), stem_kernel=1))
    return {"epoch": 240, "model": dict(randomise(net).state_dict()), "best_acc": 72.6}


def _openpifpaf() -> Tensors:
    return prefixed("base_net.", tensors_of("openpifpaf")) | other_tensors("head_nets.0.conv.weight")


def _nanodet() -> dict[str, Any]:
    around = other_tensors("fpn.lateral_convs.0.conv.weight", "head.gfl_cls.0.weight")
    net = prefixed("backbone.", tensors_of("nanodet")) | around
    return {"state_dict": {**prefixed("model.", net), **prefixed("avg_model.", net)}, "epoch": 10}


def _nanodet_with_last_convolution() -> Tensors:
    net = LAYOUTS["nanodet"].build_reference(dataclasses.replace(preset("nanodet", 0.5), last_width=1024))
    return prefixed("backbone.", dict(randomise(net).state_dict()))


def _fastestdet() -> Tensors:
    return prefixed("backbone.", tensors_of("fastestdet")) | other_tensors("detect_head.conv1x1.0.weight")


def _whole_yolov5lite() -> dict[str, Any]:
    return {"epoch": -1, "model": net_of("yolov5lite").half(), "ema": None, "optimizer": None}


def _pruned() -> Tensors:
    parts: Tensors = {}
    for name, tensor in tensors_of("torchvision").items():
        if tensor.ndim == 4:
            parts |= {f"{name}_orig": tensor, f"{name}_mask": (tensor.abs() > 0.1).float()}
        else:
            parts[name] = tensor
    return parts


def head_of_two_layers() -> Tensors:
    """A net that was fine-tuned with another head."""
    tensors = tensors_of("torchvision", 10)
    del tensors["fc.weight"], tensors["fc.bias"]
    head = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))
    return tensors | prefixed("fc.", dict(head.state_dict()))


def cases() -> Iterator[Case]:
    """Every layout in the wrapper that it is found in, then what else is done to nets."""
    wrapped: dict[str, Callable[[], Any]] = {
        "seed": lambda: tensors_of("seed"),
        "kuangliu": lambda: {"net": prefixed("module.", tensors_of("kuangliu")), "acc": 92.1, "epoch": 199},
        "chenyaofo": lambda: tensors_of("chenyaofo"),
        "torchvision": lambda: {"model": tensors_of("torchvision"), "optimizer": {"state": {}}, "epoch": 3},
        "weiaicunzai": lambda: tensors_of("weiaicunzai"),
        "megvii": lambda: {"state_dict": prefixed("module.", tensors_of("megvii"))},
        "ericsun99": lambda: tensors_of("ericsun99"),
        "mmpretrain": lambda: {"meta": {}, "state_dict": tensors_of("mmpretrain")},
        "super_gradients": lambda: {"net": tensors_of("super_gradients"), "acc": 0.6, "epoch": 9},
        "birder": lambda: {"state": tensors_of("birder"), "class_to_idx": {}},
        "pytorchcv": lambda: tensors_of("pytorchcv"),
        "pytorchcv_b": lambda: tensors_of("pytorchcv_b"),
    }
    for layout, make in wrapped.items():
        yield Case(f"{layout}: {LAYOUTS[layout].repository}", make, {})
    yield Case("pytorchcv_b built with shuffle_group_first=False", wrapped["pytorchcv_b"], {"shuffle": "reverse"})
    yield Case("kuangliu with a 1x1 stem: RepDistiller's checkpoint", _distilled, {})
    yield Case("openpifpaf: a pose net's tensors", _openpifpaf, _BACKBONE)
    yield Case("nanodet: a NanoDet-Plus checkpoint", _nanodet, _BACKBONE)
    yield Case("nanodet: its averaged weights", _nanodet, {**_BACKBONE, "use_ema": True})
    yield Case("nanodet: with_last_conv", _nanodet_with_last_convolution, {})
    yield Case("fastestdet: a FastestDet checkpoint", _fastestdet, _BACKBONE)
    yield Case("fastestdet: without --backbone", _fastestdet, {})
    yield Case("fastestdet: Yolo-FastestV2's backbone alone", lambda: tensors_of("fastestdet"), {})
    yield Case(
        "yolov5lite: a state_dict with its detector",
        lambda: tensors_of("yolov5lite") | other_tensors("model.7.conv.weight"),
        _BACKBONE,
    )
    yield Case("yolov5lite: YOLOv5's checkpoint, a whole float16 module", _whole_yolov5lite, {})
    yield Case(
        "torchvision's names without conv5 and fc",
        lambda: {k: v for k, v in tensors_of("torchvision").items() if not k.startswith(("conv5.", "fc."))},
        {},
    )
    yield Case("a whole module, torch.save(net)", lambda: net_of("torchvision", 10), {})
    yield Case("pruned by torch.nn.utils.prune", _pruned, {})
    yield Case("a head of several layers, without it", head_of_two_layers, _BACKBONE)


def outcome(case: Case) -> tuple[str, str]:
    """What became of it, and how it was proven or why it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pth"
        torch.save(case.make(), path)
        try:
            report = convert_source(read(path), **case.options).report
        except ConvertError as error:
            return "refused", str(error).removeprefix(f"{path}: ")
    proof = report.proof
    if proof.failure:
        return "**not proven**", proof.failure
    measured = f"float64 {proof.float64:.0e}, float32 {proof.float32_ratio:.2f} times PyTorch's error"
    return "converted and proven", measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="cases whose name has this in it")
    options = parser.parse_args()
    print("| file | options | what happens | how it was proven, or the refusal |\n|---|---|---|---|")
    for case in cases():
        if options.only is None or options.only in case.name:
            options_given = (
                f"--{name}" if value is True else f"--{name} {value}" for name, value in case.options.items()
            )
            given = " ".join(options_given)
            print(f"| {case.name} | {f'`{given}`' if given else ''} | {' | '.join(outcome(case))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
