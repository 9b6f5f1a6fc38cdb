"""The four sizes against PyTorch: outputs, gradients, statistics and training, to the bars of float64, float32 and
bfloat16."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import parity_tools as tools
import pytest
import torch
import torch.nn.functional as F

import flax_shufflenet as fs
from benchmarks.differences import pooled_error, worst_difference
from convert.proof.verify import relative_difference, relative_error

pytestmark = pytest.mark.device

# Float64 says whether the function is the same, for which small batches do, of images whose sides are odd, or not 32.
# How exact float32 is shows in a large one, where there is more to add up. Each case compiles for long, so that only
# the smallest net meets both batches in both precisions.
SMALL_BATCHES = [(0.5, 2, (33, 47)), (1.0, 2, (48, 40)), (1.5, 2, (17, 31)), (2.0, 2, (17, 31))]
LARGE_BATCHES = [(size, 32, (32, 32)) for size in (0.5, 1.0, 1.5, 2.0)]
FLOAT64_CASES = [*SMALL_BATCHES, LARGE_BATCHES[0]]
FLOAT32_CASES = [*LARGE_BATCHES, SMALL_BATCHES[0]]


def case_name(case: tuple) -> str:
    size, batch, (height, width) = case
    return f"{size}-batch{batch}-{height}x{width}"


def parametrize(cases: list[tuple], dtype: str) -> pytest.MarkDecorator:
    """Tests of one case and precision share a program, so that they go to one worker."""
    group = f"net parity {dtype}"
    marked = [pytest.param(case, marks=pytest.mark.xdist_group(f"{group} {case_name(case)}")) for case in cases]
    return pytest.mark.parametrize("case", marked, ids=map(case_name, cases))


class Compared(NamedTuple):
    """What JAX gives in float32, and PyTorch in both precisions, for one batch."""

    jax: tools.Results
    torch_64: tools.Results
    torch_32: tools.Results


Given = tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]


def pair_and_batch(case: tuple, dtype: str, *, far_from_kinks: bool = False) -> tuple[tools.Pair, Given]:
    """Both nets, and their tensors, images and labels."""
    size, batch, image = case
    pair = tools.make_pair(fs.seed(size), (batch, *image, 3), dtype)
    tensors = tools.random_tensors_far_from_kinks(pair) if far_from_kinks else tools.random_tensors(pair)
    # Numbers that float32 holds exactly, so that both precisions see the same images.
    images = tools.random_images(batch, *image).astype(np.float32).astype(np.float64)
    return pair, (tensors, images, np.random.default_rng(1).integers(0, 10, batch))


@functools.cache
def compare_in_float64(case: tuple) -> tuple[tools.Results, tools.Results]:
    """What JAX and PyTorch give."""
    pair, given = pair_and_batch(case, "float64")
    return pair.run_jax(*given), pair.run_torch("float64", *given)


@functools.cache
def compare_in_float32(case: tuple, *, far_from_kinks: bool = False) -> Compared:
    """Of the gradients alone where ReLUs are kept from their kinks, and of everything else where they are not."""
    pair, given = pair_and_batch(case, "float32", far_from_kinks=far_from_kinks)
    kinds = ("gradients",) if far_from_kinks else ("eval_output", "train_output", "statistics")
    in_torch = (pair.run_torch(dtype, *given, kinds) for dtype in ("float64", "float32"))
    return Compared(pair.run_jax(*given), *in_torch)


Record = Callable[[str, object], None]


def check_float64(difference: float, bar: float, record: Record, name: str = "") -> None:
    record("error", difference)
    assert difference <= bar, name


def check_float32(error: float, pytorch_error: float, record: Record) -> None:
    record("error", error)
    record("pytorch_error", pytorch_error)
    print(f"float32 error {error:.1e}, {error / pytorch_error:.2f} times PyTorch's")
    assert error <= tools.FLOAT32_BAR * pytorch_error


def errors(ours: tools.Results, theirs: tools.Results, truth: tools.Results) -> Iterator[tuple[str, float, float]]:
    """Of each kind of result: ours, and PyTorch's own."""
    for kind in tools.Results._fields:
        error_of = relative_error if kind.endswith("output") else pooled_error
        error, pytorch_error = (error_of(getattr(results, kind), getattr(truth, kind)) for results in (ours, theirs))
        yield kind, error, pytorch_error


in_float64 = parametrize(FLOAT64_CASES, "float64")


def in_float32(test: Callable) -> Callable:
    """Compiled as users run it: how exact float32 is depends on it."""
    return pytest.mark.usefixtures("optimised")(parametrize(FLOAT32_CASES, "float32")(test))


@in_float64
@pytest.mark.parametrize("output", ["eval_output", "train_output"])
def test_outputs_are_the_same_in_float64(case: tuple, output: str, float64: None, record_property: Record) -> None:
    ours, theirs = compare_in_float64(case)
    difference = relative_difference(getattr(ours, output), getattr(theirs, output))
    check_float64(difference, tools.FLOAT64_BAR, record_property)


@in_float64
@pytest.mark.parametrize("kind", ["gradients", "statistics"])
def test_every_gradient_and_statistic_is_the_same_in_float64(
    case: tuple, kind: str, float64: None, record_property: Record
) -> None:
    ours, theirs = compare_in_float64(case)
    difference, name = worst_difference(getattr(ours, kind), getattr(theirs, kind))
    check_float64(difference, tools.FLOAT64_BAR, record_property, name)


@in_float32
@pytest.mark.parametrize("output", ["eval_output", "train_output"])
def test_float32_outputs_are_as_exact_as_pytorchs(
    case: tuple, output: str, float64: None, record_property: Record
) -> None:
    measured = compare_in_float32(case)
    truth = getattr(measured.torch_64, output)
    error = relative_error(getattr(measured.jax, output), truth)
    check_float32(error, relative_error(getattr(measured.torch_32, output), truth), record_property)


@in_float32
def test_float32_statistics_are_as_exact_as_pytorchs(case: tuple, float64: None, record_property: Record) -> None:
    measured = compare_in_float32(case)
    truth = measured.torch_64.statistics
    error = pooled_error(measured.jax.statistics, truth)
    check_float32(error, pooled_error(measured.torch_32.statistics, truth), record_property)


@in_float32
def test_float32_gradients_away_from_kinks_are_as_exact_as_pytorchs(
    case: tuple, float64: None, record_property: Record
) -> None:
    measured = compare_in_float32(case, far_from_kinks=True)
    truth = measured.torch_64.gradients
    error = pooled_error(measured.jax.gradients, truth)
    check_float32(error, pooled_error(measured.torch_32.gradients, truth), record_property)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@parametrize(LARGE_BATCHES[:1], "bfloat16")
def test_bfloat16_is_as_exact_as_pytorchs(case: tuple, float64: None, record_property: Record) -> None:
    size, batch, image = case
    pair = tools.make_pair(fs.seed(size), (batch, *image, 3), "bfloat16")
    tensors = tools.random_tensors_far_from_kinks(pair)
    images = tools.random_images(batch, *image).astype(jnp.bfloat16).astype(np.float64)
    given = tensors, images, np.random.default_rng(1).integers(0, 10, batch)
    ours, truth, theirs = pair.run_jax(*given), *(pair.run_torch(dtype, *given) for dtype in ("float64", "bfloat16"))
    for kind, error, pytorch_error in errors(ours, theirs, truth):
        print(f"bfloat16 {kind}: error {error:.1e}, {error / pytorch_error:.2f} times PyTorch's")
        record_property(f"bfloat16_{kind}", error)
        assert error <= tools.FLOAT32_BAR * pytorch_error, kind


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_default_precision_is_that_of_the_devices_matrix_units(size: float, record_property: Record) -> None:
    """What users get who set nothing: products of TF32 (11 bits of mantissa) on recent GPUs, of bfloat16 (8) on TPU.

    Where these stand for float32 (24 bits), a rounding is 2**13 or 2**16 times as large, and so may the error be.
    """
    if jax.default_backend() == "cpu":
        pytest.skip("on CPU the default precision is float32's own, which the other tests hold")
    coarser = 2.0**16 if jax.default_backend() == "tpu" else 2.0**13
    batch, image = 32, (32, 32)
    # Not kept for the other tests, whose programs are of another precision.
    pair = tools.make_pair.__wrapped__(fs.seed(size), (batch, *image, 3), "float32")
    tensors = tools.random_tensors_far_from_kinks(pair)
    images = tools.random_images(batch, *image).astype(np.float32).astype(np.float64)
    given = tensors, images, np.random.default_rng(1).integers(0, 10, batch)
    ours, truth, theirs = pair.run_jax(*given), *(pair.run_torch(dtype, *given) for dtype in ("float64", "float32"))
    for kind, error, pytorch_error in errors(ours, theirs, truth):
        record_property(kind, error)
        assert error <= coarser * pytorch_error, kind
    record_property("error", relative_error(ours.eval_output, truth.eval_output))
    scores = np.sort(truth.eval_output, axis=1)
    rounding = coarser * np.abs(theirs.eval_output - truth.eval_output).max(axis=1)
    sure = scores[:, -1] - scores[:, -2] > 2 * rounding
    agreeing = ours.eval_output.argmax(1) == truth.eval_output.argmax(1)
    record_property("top1", float(agreeing.mean()))
    assert agreeing[sure].all()


@pytest.mark.slow
@parametrize(SMALL_BATCHES, "float64")
def test_ten_sgd_steps_are_the_same_in_float64(case: tuple, float64: None, record_property: Record) -> None:
    steps, (size, batch, image) = 10, case
    pair = tools.make_pair(fs.seed(size), (batch, *image, 3), "float64")
    random = np.random.default_rng(2)
    batches = [(random.standard_normal((batch, *image, 3)), random.integers(0, 10, batch)) for _ in range(steps)]
    # At ten times this rate, ten steps on two images are chaotic, and rounding in float64 is no longer small.
    learning_rate, momentum, weight_decay = 0.002, 0.9, 5e-4
    tensors = tools.random_tensors(pair)

    torch_net = pair.torch_net.double()
    torch_net.load_state_dict(tensors)
    torch_net.train()
    sgd = torch.optim.SGD(
        torch_net.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay, nesterov=True
    )
    for images, labels in batches:
        sgd.zero_grad()
        F.cross_entropy(torch_net(tools.to_nchw(images)), torch.from_numpy(labels)).backward()
        sgd.step()

    net, run = pair.jax_net, pair.compiled
    parameters, statistics = net.split(pair.arrays(tensors))
    optimiser = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum, nesterov=True)
    )
    state = jax.jit(optimiser.init)(parameters)
    for images, labels in batches:
        _, _, gradients, statistics = run(parameters, statistics, images, labels)
        # In NumPy, for which nothing is compiled.
        gradients, state, parameters = jax.tree.map(np.asarray, (gradients, state, parameters))
        updates, state = optimiser.update(gradients, state, parameters)
        parameters = cast(list[jax.Array], optax.apply_updates(parameters, updates))

    theirs = pair.arrays(torch_net.state_dict())
    ours = net.named(parameters, statistics)
    counts = {name for name in ours if name.endswith(".num_batches_tracked")}
    assert all(ours.pop(name) == theirs.pop(name) for name in counts)
    difference, name = worst_difference(ours, theirs)
    check_float64(difference, tools.FLOAT64_BAR_AFTER_STEPS, record_property, name)
