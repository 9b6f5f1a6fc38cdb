"""What is measured: each part yields rows, which are what its table and the JSON file show."""

import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple

import numpy as np

import flax_shufflenet as fs
from benchmarks.accelerator import traffic
from benchmarks.accelerator.workers import Worker, WorkerError
from benchmarks.case import CLASSES, Case
from benchmarks.report import commit, installed_versions

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]

_JAX, _TORCH = "benchmarks.accelerator.jax_programs", "benchmarks.accelerator.torch_programs"
# XLA times convolutions while it compiles: with too many at once it would choose by chance.
_COMPILING_AT_ONCE = 4
_TURN_SECONDS = 0.3
# Of losses and class scores between any two contenders: TF32 has 11 bits of mantissa, bfloat16 has 8.
_TOLERANCES = {"float32": 0.02, "bfloat16": 0.1}
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}
_DIGITS_EPOCHS = 20


class Contender(NamedTuple):
    """Who takes part; ``option`` is what its module's ``prepare`` calls the second argument."""

    title: str
    module: str
    option: str


_PROJECT = Contender("flax_shufflenet", _JAX, "project")
_FUSED = Contender("flax_shufflenet, fs.fuse", _JAX, "fused")
_STOCK = Contender("stock Flax layers", _JAX, "stock")
_EAGER = Contender("PyTorch eager, channels_last", _TORCH, "eager")
_COMPILE = Contender("torch.compile, channels_last", _TORCH, "compile")
_GRAPHS = Contender("torch.compile with CUDA graphs, channels_last", _TORCH, "graphs")


class Session:
    """The settings of a run, and its processes."""

    def __init__(self, size: float, batches: tuple[int, ...], rounds: int, folder: Path) -> None:
        self.size, self.batches, self.rounds, self.folder = size, batches, rounds, folder
        self.has_torch = importlib.util.find_spec("torch") is not None
        self._started = 0
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        self._jax, self._nets = self.worker(_JAX), self.worker("benchmarks.nets")

    @property
    def middle_batch(self) -> int:
        return sorted(self.batches)[len(self.batches) // 2]

    def worker(self, module: str) -> Worker:
        self._started += 1
        return Worker(module, self.folder / f"worker_{self._started}.log")

    def jax(self, function: str, *arguments: Any, **options: Any) -> Any:
        """A function of ``jax_programs``, in a process that is always there."""
        return self._jax.call(function, *arguments, **options)

    @cached_property
    def _device(self) -> dict[str, Any]:
        return self.jax("describe")

    @property
    def _on_accelerator(self) -> bool:
        return self._device["platform"] != "cpu"

    @cached_property
    def copy_bytes_per_second(self) -> float:
        """What the device's memory takes and gives in a copy."""
        return self.jax("copy_bytes_per_second", 2**31 if self._on_accelerator else 2**26)

    @contextlib.contextmanager
    def torch(self) -> Generator[Worker]:
        worker = self.worker(_TORCH)
        try:
            yield worker
        finally:
            worker.stop()

    def describe(self) -> dict[str, Any]:
        """The device and the versions, and what the device can do at most."""
        found = {
            "device": self._device,
            "versions": installed_versions(),
            "commit": commit(),
            "rounds": self.rounds,
            "size": self.size,
        }
        found["copy_bytes_per_second"] = self.copy_bytes_per_second
        side = 8192 if self._on_accelerator else 512
        found["flops_per_second"] = {
            dtype: self.jax("products_flops_per_second", side, dtype) for dtype in ("float32", "bfloat16")
        }
        if self.has_torch:
            with self.torch() as worker:
                found["torch"] = worker.call("describe")
        return found

    def write_nets(self, case: Case) -> None:
        """The files of weights that the contenders read."""
        if not case.flax_weights.exists():
            self._nets.call("write", case, False)

    def stop(self) -> None:
        self._jax.stop()
        self._nets.stop()


def _missing(*modules: str) -> str:
    """Which of them are not installed, as a sentence; empty where all are."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _environment() -> dict[str, str]:
    """Of commands that are to find the device by themselves."""
    return {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}


# --- parity


def parity(session: Session) -> Iterator[Row]:
    """The tests marked ``device`` that hold whole nets to PyTorch in float64 on the CPU, and what they measured."""
    if missing := _missing("pytest", "torch", "beartype"):
        yield {"name": "parity", "skipped": missing}
        return
    file = session.folder / "parity.xml"
    # The workers share the device. Warnings of other versions of the libraries are no failures.
    workers = ["-n", str(min(os.cpu_count() or 1, 12))] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", *workers, "-W", "default", "-o", "junit_family=xunit1"]
    ran = subprocess.run(
        [*command, f"--junitxml={file}", "tests/test_net_parity.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=_environment(),
    )
    if not file.exists():
        raise WorkerError(f"pytest ended with {ran.returncode}: {(ran.stderr or ran.stdout)[-500:]}")
    yield from map(_test_row, ET.parse(file).iter("testcase"))


def _test_row(case: ET.Element) -> Row:
    row: Row = {"name": case.get("name", "").partition("@")[0]}  # without the group that xdist adds
    for item in case.iter("property"):
        row[item.get("name", "")] = float(item.get("value", "nan"))
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            row["failure" if kind == "error" else kind] = " ".join((found.get("message") or "").split())[:200]
    return row


# --- speed


def train(session: Session) -> Iterator[Row]:
    """A train step at each batch, in float32 and bfloat16; PyTorch is compiled in bfloat16, by autocast."""
    architecture = fs.seed(session.size, CLASSES)
    for batch in session.batches:
        case = Case("train", session.size, batch, session.folder)
        entries = [(contender, "float32") for contender in (_PROJECT, _STOCK, _EAGER)]
        entries += [(contender, "bfloat16") for contender in (_PROJECT, _STOCK, _EAGER, _COMPILE)]
        if batch == min(session.batches):  # where starting kernels takes the most of the time
            entries.append((_GRAPHS, "bfloat16"))
        for row in _race(session, [(contender, dtype, case) for contender, dtype in entries]):
            moved = traffic.train_step_bytes(architecture, batch, _VALUE_BYTES[row["dtype"]])
            yield row | {"floor": moved / session.copy_bytes_per_second}


def forward(session: Session) -> Iterator[Row]:
    """Inference of one image, each waited for, and of 256."""
    yield from _race(
        session,
        [
            (contender, dtype, Case("infer", session.size, batch, session.folder))
            for batch in (1, 256)
            for dtype in ("float32", "bfloat16")
            for contender in (_PROJECT, _FUSED, _STOCK, _EAGER, _GRAPHS)
        ],
    )


def _race(session: Session, entries: Sequence[tuple[Contender, str, Case]]) -> list[Row]:
    """All in turn, in each round; each in a process of its own."""
    entries = [entry for entry in entries if session.has_torch or entry[0].module != _TORCH]
    for case in dict.fromkeys(case for _, _, case in entries):
        session.write_nets(case)
    compiling = Semaphore(_COMPILING_AT_ONCE)
    with contextlib.ExitStack() as stack:

        def start(entry: tuple[Contender, str, Case]) -> tuple[Worker, Row]:
            contender, dtype, case = entry
            worker = session.worker(contender.module)
            stack.callback(worker.stop)
            row: Row = {"name": contender.title, "task": case.task, "batch": case.batch, "dtype": dtype}
            try:
                worker.call("describe")  # imports, beside the others'
                with compiling if contender.module == _JAX else contextlib.nullcontext():
                    row |= worker.call("prepare", case, contender.option, dtype)
            except WorkerError as error:
                row["failure"] = str(error)
            return worker, row

        with ThreadPoolExecutor(len(entries)) as pool:
            started = list(pool.map(start, entries))
        samples: list[list[float]] = [[] for _ in started]
        for _ in range(session.rounds):
            for (worker, row), found in zip(started, samples, strict=True):
                if "failure" not in row:
                    try:
                        found.append(worker.call("turn", _TURN_SECONDS))
                    except WorkerError as error:
                        row["failure"] = str(error)
    rows = [row for _, row in started]
    for row, found in zip(rows, samples, strict=True):
        if found:
            row |= {"seconds": statistics.median(found), "samples_seconds": found}
    _compare(rows)
    return rows


def _compare(rows: Sequence[Row]) -> None:
    """Ratios to this project; and whoever computes something else than it, fails."""
    ours = {(row["batch"], row["dtype"]): row for row in rows if row["name"] == _PROJECT.title and "failure" not in row}
    for row in rows:
        base = ours.get((row["batch"], row["dtype"]))
        if base is None or "seconds" not in row:
            continue
        row["ratio"] = row["seconds"] / base["seconds"]
        values, expected = row["outcomes"], base["outcomes"]
        difference = float(np.abs(values - expected).max() / np.abs(expected).max())
        if not difference < _TOLERANCES[row["dtype"]]:
            row["failure"] = f"computes something else than {_PROJECT.title}: relative difference {difference:.1e}"
        row["difference"] = difference
    for row in rows:
        row.pop("outcomes", None)


# --- whole trainings


def training(session: Session) -> Iterator[Row]:
    """The digits from ``python train.py`` to the saved net, and an epoch of 50,000 random images on the device."""
    yield _digits(session)
    batch = session.middle_batch  # one is enough: each compiles for half a minute
    for dtype in _VALUE_BYTES:
        row: Row = {"name": f"epoch of 50,000 images, batch {batch}, {dtype}"}
        try:
            row |= session.jax("epoch", session.size, batch, dtype)
        except WorkerError as error:
            row["failure"] = str(error)
        yield row


def _digits(session: Session) -> Row:
    out = session.folder / "digits"
    options = ["--net_size", "0.5", "--dataset", "digits", "--epochs", str(_DIGITS_EPOCHS), "--batch_size", "64"]
    row: Row = {"name": f"python train.py {' '.join(options)}"}
    if missing := _missing("tyro", "sklearn", "orbax"):
        return row | {"skipped": missing}
    command = [sys.executable, "train.py", *options, "--out", str(out), "--no_compilation_cache"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
    if ran.returncode:
        return row | {"failure": f"exit code {ran.returncode}: {ran.stderr.strip()[-300:]}"}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return row | {"accuracy": records[-1]["test_accuracy"], "output": ran.stdout.splitlines()[-3:]}


# --- kernels


def profile(session: Session) -> Iterator[Row]:
    """The kernels of this project's train step at the middle batch, largest first."""
    case = Case("train", session.size, session.middle_batch, session.folder)
    session.write_nets(case)
    for dtype in _VALUE_BYTES:
        worker = session.worker("benchmarks.accelerator.profile")
        try:
            rows = worker.call("kernels", case, dtype)
        finally:
            worker.stop()
        nothing: Row = {"name": "kernels", "skipped": "the profiler tells no kernels of this device"}
        yield from (row | {"batch": case.batch, "dtype": dtype} for row in rows or [nothing])


# --- depthwise convolutions


def depthwise(session: Session) -> Iterator[Row]:
    """Forward pass and both gradients alone, at a batch large enough that starting them costs nothing."""
    architecture = fs.seed(session.size, CLASSES)
    halves = [width // 2 for width in architecture.stage_widths]
    batch = 32 * max(session.batches) // 16
    shapes = [((batch, 32, 32, halves[0]), 2), ((batch, 16, 16, halves[0]), 1), ((batch, 8, 8, halves[1]), 1)]
    shapes.append(((batch, 4, 4, halves[2]), 1))
    with session.torch() if session.has_torch else contextlib.nullcontext() as worker:
        for dtype, (shape, stride) in itertools.product(_VALUE_BYTES, shapes):
            found = {"flax_shufflenet": session.jax("depthwise", shape, stride, dtype, 0.15)}
            if worker is not None:
                found["PyTorch"] = worker.call("depthwise", shape, stride, dtype, 0.15)
            n, h, w, c = shape
            values = n * c * (h * w + -(-h // stride) * -(-w // stride))
            floor = values * _VALUE_BYTES[dtype] / session.copy_bytes_per_second
            for work in found["flax_shufflenet"]:
                row: Row = {"name": f"{work}, {'x'.join(map(str, shape))}, stride {stride}", "dtype": dtype}
                row |= {side: seconds[work] for side, seconds in found.items() if work in seconds}
                yield row | {"floor": floor}


PARTS: dict[str, Callable[[Session], Iterator[Row]]] = {
    "parity": parity,
    "train": train,
    "forward": forward,
    "training": training,
    "depthwise": depthwise,
    "profile": profile,
}
