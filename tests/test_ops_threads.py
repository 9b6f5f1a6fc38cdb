"""The engine computes the same bits on any number of threads, and none of them ends the process."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flax_shufflenet as fs
from flax_shufflenet import ops
from flax_shufflenet.functional import split

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ops.info().engine, reason=f"no engine here: {ops.info().why}"),
]


def digest() -> str:
    """Of what a net's stages give for one batch in float32: in train mode with gradients and statistics, in eval mode,
    and fused. With one block of each shape, which run again and again, as another order of the threads may be rare.
    Without the last convolution, whose kernel's gradient XLA computes, in an order that depends on the number of
    threads."""
    images = jnp.asarray(np.random.default_rng(0).standard_normal((24, 32, 32, 3)), jnp.float32)
    stages = dataclasses.replace(fs.seed(0.5), stage_blocks=(1, 1, 1), last_width=0, num_classes=0)
    model = fs.ShuffleNetV2(stages, rngs=nnx.Rngs(0))
    network, parameters, statistics = split(model)

    def loss_of(parameters: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        features, statistics_after = network.apply(parameters, statistics, images)
        return (features**2).sum(), [features, *statistics_after]

    train = jax.jit(jax.grad(loss_of, has_aux=True))
    model.eval()
    infer, fused = jax.jit(lambda images: model(images)), fs.fuse(model)
    results = jax.tree.leaves([(train(parameters), infer(images), fused(images)) for _ in range(5)])
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in results)).hexdigest()


def test_one_thread_and_four_compute_the_same_bits() -> None:
    """Four share what one or two cores have here, and take each other's turns."""
    found = [
        subprocess.run(
            [sys.executable, "-m", "tests.test_ops_threads"],
            cwd=ROOT,
            env=os.environ | {"NPROC": str(threads), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 4)
    ]
    assert found[0] == found[1]


# Each thread needs 16 MB of its own, and there are 8. The sum over two images is then wrong, or the process dies, where
# one thread's failure is not waited for.
OUT_OF_MEMORY = """
import resource
import jax
import jax.numpy as jnp
from flax_shufflenet import ops
from flax_shufflenet.ops.convolution import ENGINES

assert ops.info().engine
gradient = jax.jit(lambda x, kernel, dy: ENGINES["depthwise"].kernel_gradient(x, kernel, dy, stride=1)[0])
kernel, few, many = (jnp.ones(shape) for shape in ((3, 3, 1, 4), (16, 16, 16, 4), (2, 1024, 1024, 4)))
gradient(few, kernel, few).block_until_ready()  # starts the threads
program = gradient.lower(many, kernel, many.block_until_ready()).compile()
before = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, before[1]))
try:
    program(many, kernel, many).block_until_ready()
except jax.errors.JaxRuntimeError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, before)
assert program(many, kernel, many)[1, 1, 0, 0] == 2 * 1024 * 1024
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_too_little_memory_for_a_thread_is_an_error_and_the_process_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        cwd=ROOT,
        env=os.environ | {"NPROC": "2", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RESOURCE_EXHAUSTED: flax_shufflenet engine: out of memory\n"


if __name__ == "__main__":
    print(digest())
