"""Who takes part, and in what."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.case import Case, Program, Task


class Contender(NamedTuple):
    """``build`` is the function, as ``module:name``, that makes its program; only its own process imports it.

    Losses and class scores may differ from the others' by ``tolerance``, relatively. It runs only where it is asked for
    if it is ``optional``.
    """

    title: str
    build: str
    options: Mapping[str, Any] = MappingProxyType({})
    tasks: tuple[Task, ...] = ("train", "infer")
    needs: tuple[str, ...] = ()
    tolerance: float = 1e-3  # rounding
    optional: bool = False

    def program(self, case: Case) -> Program:
        module, name = self.build.split(":")
        return getattr(importlib.import_module(module), name)(case, **self.options)


def _torch(title: str, *, compiled: bool = False, channels_last: bool = False) -> Contender:
    return Contender(title, "benchmarks.torch_steps:build", {"compiled": compiled, "channels_last": channels_last})


def _half(title: str, build: str, *, tasks: tuple[Task, ...] = ("train", "infer")) -> Contender:
    """Eight bits of mantissa, through all of the net and three steps of training."""
    options = {"dtype": "bfloat16"}
    return Contender(f"{title}, bfloat16", build, options, tasks, tolerance=0.05, optional=True)


def _engine(title: str, module: str) -> Contender:
    return Contender(title, f"benchmarks.engines:{module}", tasks=("infer",), needs=(module, "onnxscript"))


PROJECT = "flax-shufflenet"
FUSED = "fused"
ENGINES = ("onnxruntime", "openvino")
"""What runs the ONNX file."""
FLOORS = ("floor-torch", "floor-jax")
CONTENDERS = {
    "torch-eager": _torch("PyTorch eager"),
    "torch-channels-last": _torch("PyTorch channels_last", channels_last=True),
    "torch-compile": _torch("torch.compile", compiled=True),
    "torch-compile-channels-last": _torch("torch.compile channels_last", compiled=True, channels_last=True),
    "onnxruntime": _engine("ONNX Runtime", "onnxruntime"),
    "openvino": _engine("OpenVINO", "openvino"),
    "stock-flax": Contender("stock Flax layers", "benchmarks.jax_steps:stock_flax"),
    PROJECT: Contender("flax_shufflenet", "benchmarks.jax_steps:project"),
    FUSED: Contender("flax_shufflenet, fused", "benchmarks.jax_steps:fused", tasks=("infer",)),
    "flax-shufflenet-bfloat16": _half("flax_shufflenet", "benchmarks.jax_steps:project"),
    "fused-bfloat16": _half("flax_shufflenet, fused", "benchmarks.jax_steps:fused", tasks=("infer",)),
    "floor-torch": Contender("matrix products, torch.mm", "benchmarks.floor:torch_products"),
    "floor-jax": Contender("matrix products, jnp.dot", "benchmarks.floor:jax_products"),
}


def missing_modules(names: Sequence[str]) -> list[str]:
    """What these contenders, and the table and chart at the end, need and this Python does not have."""
    needed = {"torch", "rich", "matplotlib", *(module for name in names for module in CONTENDERS[name].needs)}
    return sorted(module for module in needed if importlib.util.find_spec(module) is None)
