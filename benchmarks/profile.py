"""Where a train step's time goes, and what each part needs at least: ``python -m benchmarks.profile``.

Runs this project's train step under ``jax.profiler`` on the CPU and adds up its operations by what they compute, which
the names in the optimised program say. The least that a part needs: for matrix products the time of the plain products
alone, as in ``benchmarks train``; for all else the time to read what goes in and write what comes out, once, at the
speed of a copy. XLA fuses operations; each fusion counts as what its outcome is.
"""

import argparse
import collections
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import settings
from benchmarks.collectives import array_bytes
from benchmarks.worker import median_seconds
from flax_shufflenet.system.allocator import restart_with_fast_malloc

_STEPS = 8
_SECONDS = 0.3  # for each product and the copy; ten times as long for the step
_PRODUCTS = "pointwise"
_SCOPES = {
    "pointwise": "pointwise, forward",
    "pointwise input gradient": "pointwise, gradient to the input",
    "pointwise kernel gradient": "pointwise, gradient to the kernel",
    "depthwise": "depthwise, forward",
    "depthwise input gradient": "depthwise, gradient to the input",
    "depthwise kernel gradient": "depthwise, gradient to the kernel",
    "stem": "stem, forward",
    "stem kernel gradient": "stem, gradient to the kernel",
    "batch norm": "batch normalisation and ReLU, forward",
    "batch norm statistics": "batch normalisation and ReLU, forward",
    "batch norm gradient sums": "batch normalisation and ReLU, backward",
    "batch norm input gradient": "batch normalisation and ReLU, backward",
    "pointwise unit": "pointwise units of blocks, forward",
    "pointwise unit gradient": "pointwise units of blocks, backward",
    "depthwise unit": "depthwise units of blocks, forward",
    "depthwise unit gradient": "depthwise units of blocks, backward",
    "join": "concat and shuffle of blocks, forward",
    "join gradient": "concat and shuffle of blocks, backward",
    "concat": "concat, shuffle and split",
    "shuffle": "concat, shuffle and split",
    "split": "concat, shuffle and split",
    "update": "optimiser",
}
_REST = "all else"
_ORDER = [*dict.fromkeys(_SCOPES.values()), _REST]

# An operation's name, result, kind, operands, and what follows.
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)$")
_CALLS = ("call", "conditional", "while")
"""They take the time of the operations that they run, which are counted themselves."""


class Operation(NamedTuple):
    """One of the optimised program: its kind, what it is a part of, and the bytes that go in and come out."""

    kind: str
    part: str
    bytes: int


class Part(NamedTuple):
    """Of one step."""

    operations: int
    seconds: float
    bytes: int


def operations(program: str) -> dict[str, Operation]:
    """The operations of an optimised HLO program (``compiled.as_text()``), by name; no two of it have the same."""
    found: dict[str, Operation] = {}
    results: dict[str, int] = {}
    for line in program.splitlines():
        match = _OPERATION.match(line)
        if not match:
            continue
        name, result, kind, operands, more = match.groups()
        results[name] = array_bytes(result)
        read = sum(results.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands))
        source = re.search(r'op_name="([^"]*)"', more)
        found[name] = Operation(kind, _part(source.group(1) if source else ""), results[name] + read)
    return found


def _part(source: str) -> str:
    """The innermost scope that has a name here; ``transpose(jvp(concat))`` is that of ``concat``."""
    for scope in reversed(source.split("/")):
        name = scope.replace("transpose(", "").replace("jvp(", "").rstrip(")")
        if name in _SCOPES:
            return _SCOPES[name]
    return _REST


def durations(folder: Path) -> Iterable[tuple[str, float]]:
    """Name and seconds of each operation that a trace in this folder recorded."""
    import jax

    for file in folder.glob("**/*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name:
                        yield str(name), event.duration_ns / 1e9


def parts(program: Mapping[str, Operation], times: Iterable[tuple[str, float]], steps: int) -> dict[str, Part]:
    """What each part of a step took, on average over the steps that were traced."""
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    for name, duration in times:
        seconds[name] += duration / steps
    found = dict.fromkeys(_ORDER, Part(0, 0.0, 0))
    for name, spent in seconds.items():
        operation = program.get(name, Operation("", _REST, 0))
        if operation.kind in _CALLS:
            continue
        before = found[operation.part]
        found[operation.part] = Part(before.operations + 1, before.seconds + spent, before.bytes + operation.bytes)
    return {name: part for name, part in found.items() if part.operations}


def copy_speed() -> float:
    """Bytes a second, read and written, of adding one to 12 MB: a feature map of the first stage at batch 128."""
    import jax
    import jax.numpy as jnp

    values = jnp.zeros(3 << 20, jnp.float32)
    add = jax.jit(lambda values: values + 1)
    return 2 * values.nbytes / median_seconds(lambda: add(values).block_until_ready(), _SECONDS)


def _print(found: Mapping[str, Part], speed: float, products: float, wall: float) -> None:
    total = sum(part.seconds for part in found.values())

    def row(*cells: str) -> None:
        print(f"| {' | '.join(cells)} |")

    row("", "operations", "ms", "share", "at least ms")
    row("---", *["---:"] * 4)
    least = {name: part.bytes / speed for name, part in found.items() if not name.startswith(_PRODUCTS)}
    for name, part in found.items():
        floor = f"{1000 * least[name]:.1f}" if name in least else ""
        row(name, str(part.operations), f"{1000 * part.seconds:.1f}", f"{part.seconds / total:.0%}", floor)
    row("matrix products alone", "", "", "", f"{1000 * products:.1f}")
    count = sum(part.operations for part in found.values())
    row("sum", str(count), f"{1000 * total:.1f}", "100%", f"{1000 * (products + sum(least.values())):.1f}")
    print(f"\na step takes {1000 * wall:.1f} ms when it is not traced; copies run at {speed / 1e9:.1f} GB/s")


def _measure(size: float, batch: int) -> None:
    import jax

    import flax_shufflenet as fs
    from benchmarks import floor, jax_steps, nets, report
    from benchmarks.case import Case

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = Case("train", size, batch, folder)
        nets.write(case, onnx=False)
        train_step, state = jax_steps.make_training(fs.load(case.flax_weights))
        images, labels = case.images(), case.labels()
        compiled = train_step.lower(state, images, labels).compile()

        def step() -> None:
            nonlocal state
            state, _ = compiled(state, images, labels)
            jax.block_until_ready(state)

        wall = median_seconds(step, 10 * _SECONDS)
        with jax.profiler.trace(str(folder / "trace")):
            for _ in range(_STEPS):
                step()
        found = parts(operations(compiled.as_text() or ""), durations(folder / "trace"), _STEPS)
        products = floor.seconds(
            case,
            [
                [[median_seconds(product, _SECONDS) for product in build(case)()]]
                for build in (floor.jax_products, floor.torch_products)
            ],
        )
    print(f"{case}\n{report.heading(f'{_STEPS} steps traced')}\n")
    _print(found, copy_speed(), products, wall)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--size", type=float, choices=(0.5, 1.0, 1.5, 2.0), default=0.5)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    if arguments.batch < 2:
        parser.error("argument --batch: must be at least 2")
    restart_with_fast_malloc()
    os.environ["JAX_PLATFORMS"] = "cpu"
    settings.pin()
    _measure(arguments.size, arguments.batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
