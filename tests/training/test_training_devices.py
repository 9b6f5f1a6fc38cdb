"""One device, many devices and several processes compute the same, and tell each other no more than they must."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compiling
from jax.sharding import Mesh

from benchmarks.collectives import Collectives, count_collectives
from benchmarks.devices import PATIENCE, free_port
from convert.proof.verify import FLOAT64_BAR
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.training import devices, processes
from flax_shufflenet.training.config import Config

ROOT = Path(__file__).parents[2]
DEVICES = 6  # not a power of two, and it divides neither the test images nor the kernels' blocks

# Optimising would take longer than it saves.
XLA_FLAGS = f"--xla_backend_optimization_level=0 {quick_compiling.XLA_FLAGS} {PATIENCE}"


def start(*arguments, device_count=1):
    flags = f"--xla_force_host_platform_device_count={device_count} {XLA_FLAGS}"
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=600) for process in processes]
    for process, (_, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr
    return outputs


def runs(folder):
    """What the worker found: with one device and with several, the same with a frozen backbone, and in two processes;
    all at once."""
    worker = ("-m", "tests.training.devices_worker")
    address = f"localhost:{free_port()}"
    virtual, pair = folder / "virtual.json", folder / "pair.json"
    finish(
        start(*worker, virtual, 1, DEVICES, device_count=DEVICES),
        *(start(*worker, pair, address, 2, number) for number in range(2)),
    )
    return [*json.loads(virtual.read_text()), *json.loads(pair.read_text())]


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    return runs(tmp_path_factory.mktemp("devices"))


@pytest.fixture(scope="module")
def one_and_others(all_runs):
    one, several, *_, pair = all_runs
    return one, {f"{DEVICES} devices": several, "2 processes": pair}


@pytest.mark.slow
def test_a_frozen_backbone_on_many_devices(all_runs, one_and_others):
    _, _, one, several, _ = all_runs
    np.testing.assert_allclose(several["losses"], one["losses"], rtol=1e-8)
    np.testing.assert_allclose(several["evaluation"], one["evaluation"], rtol=1e-8)
    assert len(one["state"]) < len(one_and_others[0]["state"])  # the optimiser knows the classifier alone
    different = np.flatnonzero(np.array(one["state"]) != several["state"])
    # The classifier's 27 numbers, in the net, in its momentum and in its average.
    assert len(different) <= 3 * 27
    (kind,) = several["collectives"].values()
    assert kind[1] <= 8 * (27 + 2)  # the classifier's gradient, the loss, and how many are right


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{DEVICES} devices", "2 processes"])
def test_the_same_losses_net_and_test_result(one_and_others, name):
    """In float64, where another order of summation shows in the last digits alone: the bars of parity with PyTorch,
    1e-10 for one step and 1e-8 after several, since each step multiplies what the last one left."""
    one, others = one_and_others
    other = others[name]
    assert len(one["losses"]) == 6
    assert np.ptp(one["losses"]) > 0.01  # a net that learns: errors in a gradient would show
    np.testing.assert_allclose(other["losses"][:2], one["losses"][:2], rtol=1e-10)
    np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-8)
    state, reference = np.array(other["state"]), np.array(one["state"])
    assert np.linalg.norm(state - reference) <= 1e-8 * np.linalg.norm(reference)
    np.testing.assert_allclose(other["evaluation"], one["evaluation"], rtol=1e-8)


@pytest.mark.slow
def test_a_step_on_many_devices_only_adds_up(one_and_others):
    """Sums over the batch and gradients are exchanged; images, feature maps and their gradients stay where they are."""
    one, others = one_and_others
    assert one["collectives"] == {}
    for run in others.values():
        assert list(run["collectives"]) == ["all-reduce"]
        # Less than the state: gradients, which are a quarter of it, and a few sums for each channel and the loss.
        assert run["collectives"]["all-reduce"][1] < 8 * len(one["state"])


@pytest.mark.slow
def test_a_step_on_two_devices_is_pytorchs(tmp_path):
    """Of one net that sees the whole batch, or of two that each see half, as DistributedDataParallel's do."""
    path = tmp_path / "differences.json"
    finish(start("-m", "tests.training.two_devices_worker", path, device_count=2))
    found = json.loads(path.read_text())
    of_whole, of_halves = found["synchronised"]
    assert of_whole <= FLOAT64_BAR
    assert of_halves > 1e-3
    of_whole, of_halves = found["per_device"]
    assert of_halves <= FLOAT64_BAR
    assert of_whole > 1e-3


def test_collectives_are_counted_with_the_bytes_of_their_results():
    program = """
  %all-reduce.1 = f32[24]{0} all-reduce(%x), channel_id=1
  %all-reduce.2 = (f64[2,3]{1,0}, /*index=1*/s32[]) all-reduce(%a, %b), channel_id=2
  %start = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%c), channel_id=3
  %done = bf16[8]{0} all-gather-done(%start)
  %fusion = f32[1000]{0} fusion(%all-reduce.1), calls=%all-reduce
"""
    assert count_collectives(program) == {"all-reduce": Collectives(2, 96 + 52), "all-gather": Collectives(1, 16)}


def mesh_of(count):
    return Mesh(np.array([jax.devices()[0]] * count), (devices.BATCH_AXIS,))


@pytest.mark.parametrize(("batch_size", "nearest"), [(100, 104), (99, 96), (3, 8), (1430, 1432), (1437, 1432)])
def test_a_batch_that_cannot_be_divided_is_refused_with_the_nearest_that_can(batch_size, nearest):
    with pytest.raises(OptionError, match=rf"^--batch_size must be a multiple of 8, .* such as {nearest}$"):
        devices.check_batch_size(batch_size, 1437, mesh_of(8))


def test_one_device_has_no_mesh_and_takes_any_batch():
    devices.check_batch_size(7, 100, None)
    devices.check_batch_size(16, 100, mesh_of(8))
    np.testing.assert_array_equal(devices.own_part(jnp.arange(3)), [0, 1, 2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"coordinator": "host"}, "--num_processes must be given together with --coordinator HOST:PORT"),
        ({"process_id": 0}, "--process_id must be given together with --coordinator HOST:PORT"),
        ({"coordinator": "auto", "num_processes": 2}, "--num_processes must be given together"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT or auto"),
        ({"coordinator": "host:0", "num_processes": 2, "process_id": 0}, "--coordinator must be HOST:PORT or auto"),
        ({"coordinator": "host:9", "num_processes": 0, "process_id": 0}, "--num_processes must be at least 1"),
        ({"coordinator": "host:9", "num_processes": 2, "process_id": 2}, "--process_id must be from 0 to 1, not 2"),
    ],
)
def test_options_of_processes_that_do_not_fit_are_named(options, said):
    with pytest.raises(OptionError, match=f"^{said}"):
        Config(**options)


def test_a_port_in_use_is_one_line():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(TrainingError, match=f"port {port} cannot be used here"):
            processes.join(Config(coordinator=f"localhost:{port}", num_processes=1, process_id=0))


def test_images_that_do_not_fit_the_device_are_refused_with_what_they_take_and_what_there_is():
    said = "^the images take 12.35 GB, and the device has 5.00 GB free: all lie there while training; buy a larger one$"
    advice = "buy a larger one"
    with pytest.raises(TrainingError, match=said):
        devices.check_memory(12_345_678_901, {"bytes_limit": 8_000_000_000, "bytes_in_use": 3_000_000_000}, advice)
    devices.check_memory(5_000_000_000, {"bytes_limit": 8_000_000_000, "bytes_in_use": 3_000_000_000}, advice)
    devices.check_memory(12_345_678_901, None, advice)  # a CPU
    devices.check_memory(12_345_678_901, {"bytes_in_use": 1}, advice)
    devices.check_memory(1, jax.devices()[0].memory_stats(), advice)


@pytest.mark.slow
def test_processes_wait_for_one_that_takes_longer_to_end():
    worker = ("-m", "tests.training.ending_worker", f"localhost:{free_port()}")
    outputs = finish(*(start(*worker, number, "late", 100) for number in range(2)))
    (late, _), (early, left) = ([float(line) for line in stdout.splitlines()[-2:]] for stdout, _ in outputs)
    assert early < late <= left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "silence", "said"),
    [
        ("interrupted", 100, "process 1 has ended (interrupted, nothing new to save), which this process cannot go on"),
        ("killed", 5, ""),
        ("both", 100, "process 0 has its own message"),
    ],
)
def test_where_one_process_ends_the_other_does_not_wait(ends, silence, said):
    address = f"localhost:{free_port()}"
    worker = ("-m", "tests.training.ending_worker", address)
    processes = [start(*worker, number, ends, silence) for number in range(2)]
    outputs = [process.communicate(timeout=100) for process in processes]
    for (stdout, stderr), process in zip(outputs, processes, strict=True):
        assert "together\n" in stdout, stderr
        assert process.returncode != 0
    assert said in outputs[0][1]
