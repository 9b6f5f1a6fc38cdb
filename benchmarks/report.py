"""The figures as a table for people and as JSON for programs."""

import datetime
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import floor, settings
from benchmarks.case import IMAGE_SIDE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Case
from benchmarks.contenders import PROJECT
from benchmarks.harness import Result
from benchmarks.summary import Row, floor_seconds, summarise
from flax_shufflenet.system.versions import NOT_INSTALLED, versions

_PACKAGES = ("flax-shufflenet", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "onnx", "onnxruntime", "openvino")


def page_width() -> int | None:
    """Of tables in a file; a terminal has its own."""
    return None if sys.stdout.isatty() else 140


def hardware() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    flags = next((line.partition(": ")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "vector_extensions": [flag for flag in flags if flag.startswith(("avx", "amx"))],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
    }


def installed_versions() -> dict[str, str]:
    """Of Python and of those packages that take part and are there."""
    return {name: number for name, number in versions(*_PACKAGES).items() if number != NOT_INSTALLED}


def commit() -> str | None:
    """Of this checkout, with -dirty where code differs from it; None outside of a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    root = Path(__file__).parents[1]
    name = subprocess.run([git, "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True)
    if name.returncode:
        return None
    code = ("*.py", "*.cc", "*.h", "pyproject.toml")  # figures that are measured anew change nothing
    changed = subprocess.run([git, "diff", "--quiet", "HEAD", "--", *code], cwd=root, capture_output=True)
    return name.stdout.strip() + ("-dirty" if changed.returncode else "")


def heading(measured: str) -> str:
    """What ran on what; ``measured`` is how often, such as "7 rounds"."""
    machine = hardware()
    vectors = "AVX-512" if "avx512f" in machine["vector_extensions"] else "no AVX-512"
    shown = ", ".join(f"{name} {number}" for name, number in installed_versions().items())
    return (
        f"{machine['cpu']} ({vectors}), {machine['cores']} cores, {settings.THREADS} threads each, "
        f"load {machine['load']:.2f} at the start; {measured}, float32 unless said otherwise, "
        f"images of {IMAGE_SIDE}x{IMAGE_SIDE}\n{shown}"
    )


def print_case(console: Console, results: Sequence[Result], case: Case) -> None:
    """The table of one case's contenders, and the floor below it."""
    least = floor_seconds(results, case)
    table = Table(title=str(case), title_justify="left")
    for column in ("", "ms", "range", f"ratio to {PROJECT}", "to floor", "images/s", "compile s", "first step s", "MB"):
        table.add_column(column, justify="right" if column else "left")
    for row in summarise(results):
        table.add_row(*_cells(row), style="bold" if row.contender == PROJECT else None)
    console.print(table)
    if least:
        work = floor.flops(case)
        console.print(
            f"floor: the 1x1 convolutions' matrix products alone, {work / 1e9:.2f} GFLOP in {1000 * least:.2f} ms "
            f"({work / least / 1e9:.0f} GFLOP/s)"
        )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.title,
        f"{1000 * row.seconds:.2f}",
        f"{1000 * row.fastest:.2f} - {1000 * row.slowest:.2f}",
        f"{row.ratio:.2f}" if row.ratio else "",
        f"{row.floor_ratio:.2f}" if row.floor_ratio else "",
        f"{row.case.batch / row.seconds:,.0f}",
        f"{row.compile_seconds:.1f}",
        f"{row.startup_seconds:.1f}",
        f"{row.peak_bytes / 1e6:,.0f}",
    )


def print_growth(console: Console, results: Sequence[Result], size: float) -> None:
    """What one image costs at each batch size."""
    table = Table(title=f"{PROJECT}: train step, size {size}", title_justify="left")
    for column in ("batch", "ms a step", "range", "ms an image", "compile s", "MB"):
        table.add_column(column, justify="right")
    for row in summarise(results):
        table.add_row(
            str(row.case.batch),
            f"{1000 * row.seconds:.2f}",
            f"{1000 * row.fastest:.2f} - {1000 * row.slowest:.2f}",
            f"{row.milliseconds_per_image:.3f}",
            f"{row.compile_seconds:.1f}",
            f"{row.peak_bytes / 1e6:,.0f}",
        )
    console.print(table)


def as_json(results: Sequence[Result], command: Sequence[str], rounds: int, machine: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    environment = settings.worker_environment(Path())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks", *command],
        "commit": commit(),
        "hardware": machine,
        "versions": installed_versions(),
        "settings": {
            "rounds": rounds,
            "threads": settings.THREADS,
            "dtype": "float32",
            "image_side": IMAGE_SIDE,
            "optimizer": {
                "name": "SGD, nesterov",
                "learning_rate": LEARNING_RATE,
                "momentum": MOMENTUM,
                "weight_decay": WEIGHT_DECAY,
            },
            "environment": {name: environment.get(name) for name in settings.RECORDED},
        },
        "results": [_result(result) for result in results],
        "summary": [_summary(row) for row in summarise(results)],
        "floors": [
            {**_case(case), "seconds": least, "flops": floor.flops(case)}
            for case in dict.fromkeys(result.case for result in results)
            if (least := floor_seconds(results, case))
        ],
    }


def _case(case: Case) -> dict[str, Any]:
    return {"task": case.task, "size": case.size, "batch": case.batch}


def _result(result: Result) -> dict[str, Any]:
    return {
        "contender": result.contender,
        **_case(result.case),
        "samples_seconds": result.samples,
        "compile_seconds": result.compile_seconds,
        "startup_seconds": result.startup_seconds,
        "peak_bytes": result.peak_bytes,
    }


def _summary(row: Row) -> dict[str, Any]:
    return {
        "contender": row.contender,
        **_case(row.case),
        "seconds": row.seconds,
        "ratio": row.ratio,
        "floor_ratio": row.floor_ratio,
    }
