"""Arrays for the CPU engine's operations, and the builds for each instruction set."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from flax_shufflenet import ops
from flax_shufflenet.ops import branch, native


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def batch_norm_arrays(shape: Sequence[int]) -> tuple[jax.Array, ...]:
    """Images, scale and bias; the result's gradient, and what two vectors add to the images'."""
    vectors = [random(shape[-1], seed=i) for i in range(4)]
    return random(*shape, seed=4) * 2 + 3, vectors[0] + 2, vectors[1], random(*shape, seed=5), *vectors[2:]


def normalisation(channels: int, seed: int) -> tuple[jax.Array, ...]:
    mean, inverse, scale, bias = (random(channels, seed=seed + i) for i in range(4))
    return mean, inverse + 3, scale + 2, bias


def gradient_of(z: jax.Array) -> tuple[jax.Array, ...]:
    """Of a normalised map: gradient, map, mean, inverse deviation and scale, and the gradient's two sums."""
    return random(*z.shape, seed=20), z, *(random(z.shape[-1], seed=21 + i) for i in range(5))


def layer(kind: str, inputs: int, stride: int, seed: int) -> branch.Layer:
    """For inference: "d"epthwise, "p"ointwise or "r", pointwise with a ReLU."""
    outputs = inputs if kind == "d" else 2 * inputs + 1
    shape = (3, 3, 1, outputs) if kind == "d" else (1, 1, inputs, outputs)
    kernel, bias = (np.asarray(random(*each, seed=seed)) for each in (shape, (outputs,)))
    depthwise = kind == "d"
    return branch.Layer(kernel, bias, stride if depthwise else 1, inputs if depthwise else 1, relu=kind == "r")


def builds() -> list[str]:
    """The instruction sets that this processor has."""
    known = ["baseline", "avx2", "avx512"]
    return known[: known.index(ops.info().instructions) + 1]


@cache
def _target(instructions: str, name: str) -> str:
    library = native._library(instructions)
    target = f"{instructions}.{name}"
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return target


def run_build(instructions: str, name: str, *arrays: jax.Array | np.ndarray, **options) -> Sequence[jax.Array]:
    """What one build's handler computes, in the shapes and dtypes that the operation announces: the reference's."""
    outcomes = native._outcomes[name](*map(jax.typeof, arrays), **options)
    expected = jax.eval_shape(partial(native._references[name], **options), *arrays)
    assert [(each.shape, each.dtype) for each in outcomes] == [(each.shape, each.dtype) for each in expected]
    attributes = {key: native._attribute(value) for key, value in options.items()}
    last = len(arrays) - 1
    aliases = {last: 0} if native._in_place.get(name) == last else None
    call = jax.ffi.ffi_call(_target(instructions, name), outcomes, input_output_aliases=aliases)
    return call(*arrays, **attributes)


def check(found: Iterable[jax.Array], expected: Iterable[jax.Array], tolerance: float = 1e-12) -> None:
    """The same shapes, dtypes and values, these to a share of the largest of each array."""
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


Operation = Callable[..., Sequence[jax.Array]]


def check_operation(engine: Operation, reference: Operation, *arrays: jax.Array, **options) -> Sequence[jax.Array]:
    """What the reference gives, which the engine's results are checked against. Both are one program: otherwise JAX
    would compile one for each of the reference's own operations and shapes."""

    @jax.jit
    def both(*arrays: jax.Array) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
        return engine(*arrays, **options), reference(*arrays, **options)

    found, expected = both(*arrays)
    check(found, expected)
    return expected
