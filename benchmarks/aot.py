"""What XLA makes of the net on hardware that is not here: compiled ahead of time for a TPU or a GPU, never run.

    python3 -m venv .venv-aot
    .venv-aot/bin/pip install -e . 'jax==0.10.2' 'libtpu==0.0.42.*' jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2
    JAX_PLATFORMS=cpu .venv-aot/bin/python -m benchmarks.aot --platform tpu
    JAX_PLATFORMS=cpu .venv-aot/bin/python -m benchmarks.aot --platform cuda

An environment of its own, because libtpu and the CUDA plugin would otherwise be looked for at every start of JAX.
Prints, for a train step and for the forward pass of this project's net and of the one with stock Flax layers, what
the compiler counts for one device: operations, memory traffic, temporary memory, native convolutions and
collectives. As many convolutions as stock Flax has means that none of the CPU's formulations slipped in.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

import flax_shufflenet as fs
from benchmarks.case import CLASSES, IMAGE_SIDE
from benchmarks.collectives import Collectives, count_collectives, describe
from benchmarks.convolutions import count_convolutions
from benchmarks.jax_steps import TrainState, make_forward, make_optimizer, make_train_step
from benchmarks.report import page_width
from benchmarks.stock_flax import StockShuffleNetV2
from flax_shufflenet.functional import split

_BATCH_PER_DEVICE = 128

# An H100 SXM as XLA describes it: without a GPU to ask, what it schedules and tiles for must be said.
_H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072 l2_cache_size: 52428800 device_address_bits: 64
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
"""


class Program(NamedTuple):
    """A jitted function and the shapes that it is compiled for."""

    work: str
    net: str
    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]


class Figures(NamedTuple):
    """The compiler's own counts, for one device; None where it gives none (CUDA, without a GPU)."""

    flops: float | None
    bytes_accessed: float | None
    temporary_bytes: int
    convolutions: int
    collectives: dict[str, Collectives]
    compile_seconds: float


def meshes(platform: str) -> Iterator[tuple[str, Mesh]]:
    """The hardware to compile for, with what it is called."""
    if platform == "cuda":
        topology = topologies.get_topology_desc(platform="cuda", target_config=_H100, topology="1x1x1")
        yield "H100", _data_mesh(topology.devices)
    else:
        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
        yield "v5e, one chip", _data_mesh(devices[:1])
        yield "v5e 2x2, data-parallel", _data_mesh(devices)


def _data_mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def programs(size: float, mesh: Mesh) -> Iterator[Program]:
    """The train step and the forward pass of both nets; a batch is split over the mesh, all else is on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    split_up = NamedSharding(mesh, PartitionSpec("data"))
    batch = _BATCH_PER_DEVICE * mesh.size
    images = jax.ShapeDtypeStruct((batch, IMAGE_SIDE, IMAGE_SIDE, 3), jnp.float32, sharding=split_up)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split_up)
    architecture = fs.seed(size, CLASSES)
    optimizer = make_optimizer()
    for net, kind in {"flax_shufflenet": fs.ShuffleNetV2, "stock Flax layers": StockShuffleNetV2}.items():
        model = nnx.eval_shape(lambda kind=kind: kind(architecture, rngs=nnx.Rngs(0)))
        network, parameters, statistics = split(model)
        state = TrainState(parameters, statistics, jax.eval_shape(optimizer.init, parameters))
        yield Program(
            "train step", net, make_train_step(network, optimizer), (_placed(state, everywhere), images, labels)
        )
        model.eval()
        network, _, _ = split(model)
        yield Program("forward", net, make_forward(network), (*_placed((parameters, statistics), everywhere), images))
    fast = fs.fuse(fs.ShuffleNetV2(architecture, rngs=nnx.Rngs(0)))
    yield Program("forward", "flax_shufflenet, fused", jax.jit(lambda images: fast(images)), (images,))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def compile_for(platform: str, program: Program) -> Figures:
    """Compiles a program for the devices that its arguments are placed on, and reads the result."""
    started = time.perf_counter()
    compiled = compile_ahead(platform, program.function, program.arguments)
    return figures_of(compiled, time.perf_counter() - started)


def compile_ahead(platform: str, function: jax.stages.Wrapped, arguments: tuple[Any, ...]) -> jax.stages.Compiled:
    """A jitted function, for the devices that the shapes of its arguments are placed on."""
    return function.trace(*arguments).lower(lowering_platforms=(platform,)).compile()


def figures_of(compiled: jax.stages.Compiled, seconds: float) -> Figures:
    """What the compiler counted; ``seconds`` is what compiling took."""
    cost, memory, text = compiled.cost_analysis() or {}, compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    return Figures(
        cost.get("flops"),
        cost.get("bytes accessed"),
        memory.temp_size_in_bytes,
        sum(count_convolutions(text).values()),
        count_collectives(text),
        seconds,
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", choices=("tpu", "cuda"), required=True)
    parser.add_argument("--size", type=float, choices=(0.5, 1.0, 1.5, 2.0), default=1.0)
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True, width=page_width())
    try:
        for hardware, mesh in meshes(arguments.platform):
            table = Table(
                title=f"{hardware}: size {arguments.size}, batch {_BATCH_PER_DEVICE} a device, jax {jax.__version__}",
                title_justify="left",
            )
            for column in ("", "GFLOP", "GB moved", "MB temporary", "convolutions", "collectives", "compile s"):
                table.add_column(column, justify="right" if column else "left")
            for program in programs(arguments.size, mesh):
                print(f"compiling the {program.work} of {program.net} for {hardware}", file=sys.stderr)
                table.add_row(f"{program.work}, {program.net}", *_cells(compile_for(arguments.platform, program)))
            console.print(table)
    except Exception as error:  # most likely the platform's package is not installed
        print(f"benchmarks.aot: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 1
    return 0


def _cells(figures: Figures) -> tuple[str, ...]:
    return (
        "-" if figures.flops is None else f"{figures.flops / 1e9:.1f}",
        "-" if figures.bytes_accessed is None else f"{figures.bytes_accessed / 1e9:.2f}",
        f"{figures.temporary_bytes / 1e6:,.0f}",
        str(figures.convolutions),
        describe(figures.collectives),
        f"{figures.compile_seconds:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
