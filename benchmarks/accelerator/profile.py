"""Where a train step's time goes on the device: its kernels by name, from JAX's profiler."""

import collections
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import flax_shufflenet as fs
from benchmarks.case import Case
from benchmarks.jax_steps import make_training

_STEPS = 10
_LARGEST = 30


def kernels(case: Case, dtype: str) -> list[dict[str, Any]]:
    """The kernels that take the most of a step: name, calls and seconds a step; empty where the profiler sees none,
    as on CPU. The first row is the sum of all."""
    step, state = make_training(fs.load(case.flax_weights, dtype=jnp.dtype(dtype)))
    images, labels = jnp.asarray(case.images()), jnp.asarray(case.labels())
    state, loss = step(state, images, labels)
    jax.block_until_ready((state, loss))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_STEPS):
                state, loss = step(state, images, labels)
            jax.block_until_ready((state, loss))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_serialized_xspace(file.read_bytes())
    seconds, calls = collections.Counter[str](), collections.Counter[str]()
    for plane in data.planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            # Other lines group the same kernels anew, by module or by source line.
            for event in line.events if (line.name or "").startswith("Stream") else ():
                seconds[event.name] += event.duration_ns * 1e-9 / _STEPS
                calls[event.name] += 1
    rows = [{"name": name, "seconds": time, "calls": calls[name] / _STEPS} for name, time in seconds.most_common()]
    if not rows:
        return []
    total = {"name": "all kernels", "seconds": seconds.total(), "calls": calls.total() / _STEPS}
    return [total, *rows[:_LARGEST]]
