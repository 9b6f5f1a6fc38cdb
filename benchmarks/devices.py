"""``python -m benchmarks.devices``: the same training on one device, on two virtual ones and in two processes.

Prints the losses side by side, the time of a step, and what the devices tell each other at each. Handwritten digits,
net size 0.5, float32. A last column trains on one device from weights that differ by one rounding: two float32 runs
that add up in another order part as these two do, so that is what the columns are to be compared with, but for the one
of batch statistics per device, which is another training. All run on the CPU, one after the other.

``--pipeline stream`` compares in float64, where rounding does not hide an error: the digits in memory, and streamed
from a folder of PNG files by one, two and four processes.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.case import IMAGE_SIDE

VIRTUAL_DEVICES = 2
PROCESSES = 2

# Devices that share few cores wait long for one another.
PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600 --xla_cpu_collective_call_terminate_timeout_seconds=600"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.devices", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--pipeline", choices=("device", "stream"), default="device")
    parser.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return parser


# --- one run, in a process of its own


def _work(options: dict, out: str, rounded: bool, dtype: str) -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from benchmarks.curve import train_curve
    from flax_shufflenet import ShuffleNetV2, seed
    from flax_shufflenet.training import devices, pipeline, processes
    from flax_shufflenet.training.config import Config

    jax.config.update("jax_enable_x64", dtype == "float64")
    config = Config(net_size=0.5, **options)
    processes.join(config)
    dataset, _ = pipeline.load(config, IMAGE_SIDE)
    architecture = seed(0.5, len(dataset.class_names))
    model = ShuffleNetV2(architecture, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(config.seed))
    if rounded:
        kernel = model.stem.conv.kernel
        kernel[...] = jnp.nextafter(kernel[...], jnp.inf)
    curve = train_curve(model, config, dataset, devices.make_mesh())
    if processes.is_first_process():
        result = curve._replace(state=[])._asdict()
        Path(out).write_text(json.dumps(result | {"device_count": jax.device_count()}))


# --- all of them, side by side


def _start(
    options: dict, out: Path, *, device_count: int = 1, rounded: bool = False, dtype: str = "float32"
) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={device_count} {PATIENCE}"
    work = json.dumps({"options": options, "out": str(out), "rounded": rounded, "dtype": dtype})
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.devices", "--worker", work],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )


def _wait(*processes: subprocess.Popen) -> None:
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("benchmarks.devices: a run failed; its message is above")


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def _start_processes(options: dict, out: Path, count: int, *, dtype: str = "float32") -> list[subprocess.Popen]:
    if count == 1:
        return [_start(options, out, dtype=dtype)]
    several = {"coordinator": f"localhost:{free_port()}", "num_processes": count}
    return [_start(options | several | {"process_id": number}, out, dtype=dtype) for number in range(count)]


def _runs(options: dict, folder: Path) -> dict[str, dict]:
    options = options | {"dataset": "digits"}
    outs = [folder / f"{number}.json" for number in range(5)]
    _wait(_start(options, outs[0]))
    _wait(_start(options, outs[1], device_count=VIRTUAL_DEVICES))
    _wait(_start(options | {"batch_statistics": "per_device"}, outs[2], device_count=VIRTUAL_DEVICES))
    _wait(*_start_processes(options, outs[3], PROCESSES))
    _wait(_start(options, outs[4], rounded=True))
    several = f"{VIRTUAL_DEVICES} devices"
    titles = ("1 device", several, f"{several}, statistics per device", f"{PROCESSES} processes", "1 device, rounded")
    return dict(zip(titles, (json.loads(out.read_text()) for out in outs), strict=True))


def _streamed_runs(options: dict, folder: Path) -> dict[str, dict]:
    digits = folder / "digits"
    _write_digits(digits)
    options = options | {"dataset": str(digits), "no_flip": True}
    runs = {}
    for pipeline, count in (("device", 1), ("stream", 1), ("stream", 2), ("stream", 4)):
        out = folder / f"{pipeline}_{count}.json"
        _wait(*_start_processes(options | {"pipeline": pipeline}, out, count, dtype="float64"))
        title = f"{count} process{'es' if count > 1 else ''}, {'streamed' if pipeline == 'stream' else 'in memory'}"
        runs[title] = json.loads(out.read_text())
    return runs


def _write_digits(folder: Path) -> None:
    """scikit-learn's digits as ``FOLDER/PART/CLASS/NUMBER.png``."""
    from PIL import Image

    from flax_shufflenet.datasets import data

    digits = data.load("digits", folder)
    for part in ("train", "test"):
        images, labels = getattr(digits, f"{part}_images"), getattr(digits, f"{part}_labels")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / digits.class_names[label] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def _print(runs: dict[str, dict]) -> None:
    from benchmarks.collectives import Collectives, describe

    losses = {title: np.array(run["losses"]) for title, run in runs.items()}
    first, reference = next(iter(losses.items()))
    steps = [step for step in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48) if step < len(reference)] + [len(reference)]

    def row(*cells: str) -> None:
        print(f"| {' | '.join(cells)} |")

    row("", *runs)
    row("---", *("---" for _ in runs))
    for step in steps:
        row(f"loss of step {step}", *(f"{curve[step - 1]:.6f}" for curve in losses.values()))
    for step in (1, 4, len(reference)):
        apart = (np.max(np.abs(curve[:step] / reference[:step] - 1)) for curve in losses.values())
        row(f"largest relative difference to {first}, up to step {step}", *(f"{value:.1e}" for value in apart))
    row("milliseconds of a step, median", *(f"{1e3 * statistics.median(run['seconds']):.0f}" for run in runs.values()))
    row("test loss", *(f"{run['evaluation'][0]:.4f}" for run in runs.values()))
    row("test accuracy", *(f"{run['evaluation'][1]:.2%}" for run in runs.values()))
    exchanged = (
        describe({kind: Collectives(*some) for kind, some in run["collectives"].items()}) for run in runs.values()
    )
    row("collectives of a step", *exchanged)


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.worker:
        _work(**json.loads(arguments.worker))
        return
    options = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "learning_rate")}
    with tempfile.TemporaryDirectory() as folder:
        make = _streamed_runs if arguments.pipeline == "stream" else _runs
        _print(make(options, Path(folder)))


if __name__ == "__main__":
    main()
