"""PyTorch's side, channels_last: eager, compiled, and compiled with CUDA graphs; float32 with TF32, or autocast."""

import contextlib
import time
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it

from benchmarks.accelerator.workers import Program, seconds_each
from benchmarks.case import CLASSES, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Case
from torch_ref import ShuffleNetV2

Mode = Literal["eager", "compile", "graphs"]

_prepared: list[Program] = []


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def describe() -> dict[str, Any]:
    """The device, as PyTorch names it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": name, "torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}


class _Repeated:
    def __init__(self, step: Any, *, synchronous: bool = False) -> None:
        self._step, self._synchronous = step, synchronous

    def run(self, count: int) -> None:
        for _ in range(count):
            self._step()
            if self._synchronous:
                _wait()
        _wait()


def prepare(case: Case, mode: Mode, dtype: str) -> dict[str, Any]:
    """Compiles one program and keeps it; the rest as for ``jax_programs.prepare``."""
    # As JAX's default precision on the same device.
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = _device()
    before = _allocated()
    net = ShuffleNetV2(case.size, CLASSES)
    net.load_state_dict(torch.load(case.torch_weights, weights_only=True))
    net.to(device=device, memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    images = torch.from_numpy(case.images()).permute(0, 3, 1, 2).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    precision = torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    step = _train_step if case.task == "train" else _forward
    started = time.perf_counter()
    step = step(net, images, torch.from_numpy(case.labels()).long().to(device), mode, precision)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    outcomes = [step().detach().double().cpu().numpy()]
    seconds = time.perf_counter() - started
    outcomes += [step().detach().double().cpu().numpy() for _ in range(2)]
    program = _Repeated(step, synchronous=case.task == "infer" and case.batch == 1)
    program.run(3)
    _prepared.append(program)
    peak = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else None
    return {"compile_seconds": seconds, "outcomes": np.asarray(outcomes), "memory_bytes": peak}


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _compiled(net: torch.nn.Module, mode: Mode) -> Any:
    if mode == "eager":
        return net
    # Frozen weights let an eval-mode net have its batch normalisation folded.
    options: dict[str, Any] = {"freezing": not net.training, "triton.cudagraphs": mode == "graphs"}
    return torch.compile(net, dynamic=False, options=options)


def _train_step(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, mode: Mode, precision: Any) -> Any:
    net.train()
    forward = _compiled(net, mode)
    optimizer = torch.optim.SGD(
        net.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, fused=True
    )

    def step() -> torch.Tensor:
        if mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        with precision:
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _forward(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, mode: Mode, precision: Any) -> Any:
    net.eval()
    forward = _compiled(net, mode)

    def step() -> torch.Tensor:
        if mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), precision:
            return forward(images)

    return step


def turn(budget: float) -> float:
    """Seconds of one repetition of the prepared program."""
    return seconds_each(_prepared[-1], budget)


def depthwise(shape: tuple[int, int, int, int], stride: int, dtype: str, budget: float) -> dict[str, float]:
    """Seconds of a depthwise 3x3 convolution [n h w c] and its two gradients, by cuDNN in channels_last."""
    n, h, w, c = shape
    options = {"device": _device(), "dtype": getattr(torch, dtype)}
    x = torch.randn((n, c, h, w), **options).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn((c, 1, 3, 3), **options)
    geometry = ((stride, stride), (1, 1), (1, 1))
    dy = torch.randn_like(F.conv2d(x, kernel, stride=stride, padding=1, groups=c))

    def gradient(*wanted: bool) -> Any:
        return lambda: torch.ops.aten.convolution_backward(
            dy, x, kernel, None, *geometry, False, (0, 0), c, [*wanted, False]
        )[wanted.index(True)]

    works = {
        "forward": lambda: F.conv2d(x, kernel, stride=stride, padding=1, groups=c),
        "input gradient": gradient(True, False),
        "kernel gradient": gradient(False, True),
    }
    return {name: seconds_each(_Repeated(work), budget) for name, work in works.items()}
