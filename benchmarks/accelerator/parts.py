"""What is measured: each part returns rows, which are what its table and the JSON file show."""

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple

import numpy as np

import flax_shufflenet as fs
from benchmarks.accelerator import traffic
from benchmarks.accelerator.workers import Worker, WorkerError
from benchmarks.case import CLASSES, Case
from benchmarks.report import installed_versions

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]

_JAX, _TORCH = "benchmarks.accelerator.jax_programs", "benchmarks.accelerator.torch_programs"
# XLA times convolutions while it compiles: with too many at once it would choose by chance.
_COMPILING_AT_ONCE = 3
_TURN_SECONDS = 0.4
# Of losses and class scores between any two contenders: TF32 has 11 bits of mantissa, bfloat16 has 8.
_TOLERANCES = {"float32": 0.02, "bfloat16": 0.1}
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
        self._jax = self.worker(_JAX)

    def worker(self, module: str) -> Worker:
        self._started += 1
        return Worker(module, self.folder / f"worker_{self._started}.log")

    def jax(self, function: str, *arguments: Any, **options: Any) -> Any:
        """A function of ``jax_programs``, in a process that is always there."""
        return self._jax.call(function, *arguments, **options)

    @contextlib.contextmanager
    def torch(self) -> Iterator[Worker]:
        worker = self.worker(_TORCH)
        try:
            yield worker
        finally:
            worker.stop()

    def describe(self) -> dict[str, Any]:
        """The device and the versions, and what the device can do at most."""
        found = {
            "device": self.jax("describe"),
            "versions": installed_versions(),
            "rounds": self.rounds,
            "size": self.size,
        }
        on_accelerator = found["device"]["platform"] != "cpu"
        found["copy_bytes_per_second"] = self.jax("copy_bytes_per_second", 2**31 if on_accelerator else 2**26)
        side = 8192 if on_accelerator else 512
        found["flops_per_second"] = {
            dtype: self.jax("products_flops_per_second", side, dtype) for dtype in ("float32", "bfloat16")
        }
        if self.has_torch:
            with self.torch() as worker:
                found["torch"] = worker.call("describe")
        return found

    def stop(self) -> None:
        self._jax.stop()


# --- parity


def parity(session: Session) -> list[Row]:
    """The tests marked ``device`` that hold whole nets to PyTorch in float64 on the CPU, and what they measured."""
    missing = [name for name in ("pytest", "torch", "beartype") if importlib.util.find_spec(name) is None]
    if missing:
        return [{"name": "parity", "skipped": f"not installed: {', '.join(missing)}"}]
    file = session.folder / "parity.xml"
    # The workers share the device. Warnings of other versions of the libraries are no failures.
    workers = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", *workers, "-W", "default", "-o", "junit_family=xunit1"]
    ran = subprocess.run(
        [*command, f"--junitxml={file}", "tests/test_net_parity.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"},
    )
    if not file.exists():
        raise WorkerError(f"pytest ended with {ran.returncode}: {(ran.stderr or ran.stdout)[-500:]}")
    return [_test_row(case) for case in ET.parse(file).iter("testcase")]


def _test_row(case: ET.Element) -> Row:
    row: Row = {"name": case.get("name", "").partition("@")[0]}  # without the group that xdist adds
    for item in case.iter("property"):
        row[item.get("name", "")] = float(item.get("value", "nan"))
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            row["failure" if kind == "error" else kind] = " ".join((found.get("message") or "").split())[:200]
    return row


# --- speed


def train(session: Session) -> list[Row]:
    """A train step at each batch, in float32 and bfloat16; PyTorch is compiled in bfloat16, by autocast."""
    rows = []
    for batch in session.batches:
        case = Case("train", session.size, batch, session.folder)
        entries = [(contender, "float32") for contender in (_PROJECT, _STOCK, _EAGER)]
        entries += [(contender, "bfloat16") for contender in (_PROJECT, _STOCK, _EAGER, _COMPILE)]
        if batch == min(session.batches):  # where starting kernels takes the most of the time
            entries.append((_GRAPHS, "bfloat16"))
        rows += _race(session, [(contender, dtype, case) for contender, dtype in entries])
    return rows


def forward(session: Session) -> list[Row]:
    """Inference of one image, each waited for, and of 256."""
    return _race(
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
        _write_nets(session, case)
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


def _write_nets(session: Session, case: Case) -> None:
    worker = session.worker("benchmarks.nets")
    try:
        worker.call("write", case, False)
    finally:
        worker.stop()


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


def training(session: Session) -> list[Row]:
    """The digits from ``python train.py`` to the saved net, and an epoch of 50,000 random images on the device."""
    rows = [_digits(session)]
    for dtype in ("float32", "bfloat16"):
        for batch in session.batches:
            row: Row = {"name": f"epoch of 50,000 images, batch {batch}, {dtype}"}
            with contextlib.suppress(WorkerError):
                row |= session.jax("epoch", session.size, batch, dtype, 50_000)
            rows.append(row)
    return rows


def _digits(session: Session) -> Row:
    out = session.folder / "digits"
    options = ["--net_size", "0.5", "--dataset", "digits", "--epochs", str(_DIGITS_EPOCHS), "--batch_size", "64"]
    row: Row = {"name": f"python train.py {' '.join(options)}"}
    missing = [name for name in ("tyro", "sklearn", "orbax") if importlib.util.find_spec(name) is None]
    if missing:
        return row | {"skipped": f"not installed: {', '.join(missing)}"}
    command = [sys.executable, "train.py", *options, "--out", str(out), "--no_compilation_cache"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if ran.returncode:
        return row | {"failure": f"exit code {ran.returncode}: {ran.stderr.strip()[-300:]}"}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return row | {"accuracy": records[-1]["test_accuracy"], "output": ran.stdout.splitlines()[-3:]}


# --- depthwise convolutions


def depthwise(session: Session) -> list[Row]:
    """Forward pass and both gradients alone, at a batch large enough that starting them costs nothing."""
    architecture = fs.seed(session.size, CLASSES)
    halves = [width // 2 for width in architecture.stage_widths]
    batch = 32 * max(session.batches) // 16
    shapes = [((batch, 32, 32, halves[0]), 2), ((batch, 16, 16, halves[0]), 1), ((batch, 8, 8, halves[1]), 1)]
    shapes.append(((batch, 4, 4, halves[2]), 1))
    rate = session.jax("copy_bytes_per_second", 2**28)
    rows = []
    for dtype in ("float32", "bfloat16"):
        for shape, stride in shapes:
            found = {"flax_shufflenet": session.jax("depthwise", shape, stride, dtype, 0.15)}
            if session.has_torch:
                with session.torch() as worker:
                    found["PyTorch"] = worker.call("depthwise", shape, stride, dtype, 0.15)
            n, h, w, c = shape
            values = n * c * (h * w + -(-h // stride) * -(-w // stride))
            floor = values * (4 if dtype == "float32" else 2) / rate
            for work in found["flax_shufflenet"]:
                row: Row = {"name": f"{work}, {'x'.join(map(str, shape))}, stride {stride}", "dtype": dtype}
                row |= {side: seconds[work] for side, seconds in found.items()}
                rows.append(row | {"floor": floor})
    return rows


def step_floor_seconds(session_report: dict, dtype: str, batch: int) -> float:
    """The time that a train step's traffic takes at the speed of a copy."""
    architecture = fs.seed(session_report["size"], CLASSES)
    moved = traffic.train_step_bytes(architecture, batch, 4 if dtype == "float32" else 2)
    return moved / session_report["copy_bytes_per_second"]


PARTS: dict[str, Callable[[Session], list[Row]]] = {
    "parity": parity,
    "train": train,
    "forward": forward,
    "training": training,
    "depthwise": depthwise,
}
