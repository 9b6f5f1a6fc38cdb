"""JAX's side: this project's net and one of stock Flax layers, compiled for the device that JAX finds first."""

import re
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import flax_shufflenet as fs
from benchmarks.accelerator.workers import Program, seconds_each
from benchmarks.case import CLASSES, Case
from benchmarks.convolutions import count_convolutions
from benchmarks.input_path import random_dataset
from benchmarks.jax_steps import make_forward, make_training
from benchmarks.stock_flax import with_weights_of
from flax_shufflenet.functional import split
from flax_shufflenet.ops.convolution import conv2d
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.program import Program as Training

_prepared: list[Program] = []


def describe() -> dict[str, Any]:
    """The device, as JAX names it."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {"platform": device.platform, "device": device.device_kind, "jax": jax.__version__, "memory_bytes": memory}


class _Repeated:
    """A compiled function whose first argument is what it returned last, or that is given the same each time."""

    def __init__(self, compiled: Any, state: Any, inputs: tuple[Any, ...], *, synchronous: bool = False) -> None:
        self._compiled, self._state, self._inputs, self._synchronous = compiled, state, inputs, synchronous

    def run(self, count: int) -> Any:
        """The last output. The others are dropped as they come: a device does not hold them all."""
        output = None
        for _ in range(count):
            if self._state is None:
                output = self._compiled(*self._inputs)
            else:
                self._state, output = self._compiled(self._state, *self._inputs)
            if self._synchronous:
                jax.block_until_ready(output)
        jax.block_until_ready((self._state, output))
        return output


def prepare(case: Case, net: str, dtype: str) -> dict[str, Any]:
    """Compiles one program and keeps it: what compiling it told, and the outcomes of its first steps.

    ``net`` is "project", "fused" or "stock". One image alone is waited for each time, as a server does.
    """
    model: Any = fs.load(case.flax_weights, dtype=jnp.dtype(dtype))
    images, labels = jnp.asarray(case.images()), jnp.asarray(case.labels())
    if net == "stock":
        model = with_weights_of(model)
    started = time.perf_counter()
    if case.task == "train":
        step, state = make_training(model)
        compiled, inputs = step.lower(state, images, labels).compile(), (images, labels)
    elif net == "fused":
        fast, state, inputs = fs.fuse(model), None, (images,)
        compiled = jax.jit(lambda images: fast(images)).lower(images).compile()
    else:
        model.eval()
        network, parameters, statistics = split(model)
        state, inputs = None, (parameters, statistics, images)
        compiled = make_forward(network).lower(*inputs).compile()
    seconds = time.perf_counter() - started
    program = _Repeated(compiled, state, inputs, synchronous=case.task == "infer" and case.batch == 1)
    _prepared.append(program)
    outcomes = np.asarray([np.asarray(program.run(1), np.float64) for _ in range(3)])
    return {"compile_seconds": seconds, "outcomes": outcomes, **_figures(compiled)}


def _figures(compiled: Any) -> dict[str, Any]:
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text() or ""
    return {
        # Buffers that the program takes, gives and works in; what it donates counts once.
        "memory_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "convolutions": count_convolutions(text),
        "kernels": len(re.findall(r"^\s+(?:ROOT )?%?\S+ = \S+ (?:fusion|custom-call)\(", text, re.MULTILINE)),
    }


def turn(budget: float) -> float:
    """Seconds of one repetition of the prepared program."""
    return seconds_each(_prepared[-1], budget)


def epoch(size: float, batch: int, dtype: str) -> dict[str, float]:
    """One epoch of training as ``train.py`` runs it, on 50,000 random images that lie on the device."""
    dataset = random_dataset()
    model = fs.ShuffleNetV2(fs.seed(size, CLASSES), dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    training = Training(model, Config(net_size=size, batch_size=batch, epochs=3), dataset)
    started = time.perf_counter()
    training.compile()
    compiling = time.perf_counter() - started
    state, order = training.initial, training.order(1)
    for _ in range(3):
        state, _ = training.step(state, order)
    jax.block_until_ready(state)
    order = training.order(2)
    started = time.perf_counter()
    for _ in range(training.steps_per_epoch):
        state, _ = training.step(state, order)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - started
    done = training.steps_per_epoch * batch
    return {"compile_seconds": compiling, "seconds": seconds, "images_per_second": done / seconds}


def copy_bytes_per_second(size: int) -> float:
    """Of a copy of ``size`` bytes within the device's memory, bytes read and written."""
    x = jnp.arange(size // 4, dtype=jnp.float32)
    compiled = jax.jit(lambda x: x + 1).lower(x).compile()
    return 2 * size / seconds_each(_Repeated(compiled, None, (x,)), 0.3)


def products_flops_per_second(side: int, dtype: str) -> float:
    """Of a square matrix product of random numbers, at JAX's default precision."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side)), jnp.dtype(dtype))
    compiled = jax.jit(lambda x: x @ x).lower(x).compile()
    return 2 * side**3 / seconds_each(_Repeated(compiled, None, (x,)), 0.3)


def depthwise(shape: tuple[int, int, int, int], stride: int, dtype: str, budget: float) -> dict[str, float]:
    """Seconds of a depthwise 3x3 convolution [n h w c] and its two gradients, as the net computes them; and of the
    kernel gradient in two other ways, since in float32 cuDNN is slow at it where 4 does not divide the channels."""
    c = shape[-1]
    random = np.random.default_rng(0)
    conv = partial(conv2d, stride=stride, groups=c)
    x, kernel = (jnp.asarray(random.standard_normal(s, np.float32), jnp.dtype(dtype)) for s in (shape, (3, 3, 1, c)))
    dy = jax.jit(conv)(x, kernel) * 2

    def padded_kernel_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        x, kernel, dy = (jnp.pad(array, [(0, 0)] * 3 + [(0, -c % 4)]) for array in (x, kernel, dy))
        padded = partial(conv2d, x, stride=stride, groups=x.shape[-1])
        return jax.vjp(padded, kernel)[1](dy)[0][..., :c]

    def nine_sums(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        rows, columns = (slice(dy.shape[axis] * stride) for axis in (1, 2))
        taps = [x[:, i:, j:][:, rows, columns][:, ::stride, ::stride] for i in range(3) for j in range(3)]
        return jnp.stack([jnp.sum(tap * dy, (0, 1, 2), dtype=jnp.float32) for tap in taps]).reshape(kernel.shape)

    works = {
        "forward": lambda x, kernel, dy: conv(x, kernel),
        "input gradient": lambda x, kernel, dy: jax.vjp(lambda x: conv(x, kernel), x)[1](dy)[0],
        "kernel gradient": lambda x, kernel, dy: jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](dy)[0],
        "kernel gradient, channels padded to fours": padded_kernel_gradient,
        "kernel gradient, nine sums": nine_sums,
    }
    return {
        name: seconds_each(_Repeated(jax.jit(work).lower(x, kernel, dy).compile(), None, (x, kernel, dy)), budget)
        for name, work in works.items()
    }
