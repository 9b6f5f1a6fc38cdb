"""The engine computes the same bits on any number of threads."""

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


def digest() -> str:
    """Of what a net's stages give for one batch in float32: in train mode with gradients and statistics, in eval mode,
    and fused. Without the last convolution, whose kernel's gradient XLA computes, in an order that depends on the
    number of threads."""
    images = jnp.asarray(np.random.default_rng(0).standard_normal((24, 32, 32, 3)), jnp.float32)
    stages = dataclasses.replace(fs.seed(0.5), last_width=0, num_classes=0)
    model = fs.ShuffleNetV2(stages, rngs=nnx.Rngs(0))
    network, parameters, statistics = split(model)

    def loss_of(parameters: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        features, statistics_after = network.apply(parameters, statistics, images)
        return (features**2).sum(), [features, *statistics_after]

    results = list(jax.tree.leaves(jax.jit(jax.grad(loss_of, has_aux=True))(parameters)))
    model.eval()
    results += [jax.jit(lambda images: model(images))(images), fs.fuse(model)(images)]
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in results)).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(not ops.info().engine, reason=f"no engine here: {ops.info().why}")
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


if __name__ == "__main__":
    print(digest())
