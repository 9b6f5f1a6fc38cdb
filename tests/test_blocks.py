"""Shuffle, split, each layer and each block alone against PyTorch, in float64 to the bar of the same function."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import parity_tools as tools
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec as P

import flax_shufflenet as fs
import torch_ref
from benchmarks.differences import worst_difference
from convert.proof.verify import relative_difference
from flax_shufflenet import functional
from flax_shufflenet.layers import BatchNorm, Conv, ConvBN
from flax_shufflenet.model import max_pool
from flax_shufflenet.ops import blocks
from torch_ref.randomise import randomise

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("float64")]

EVEN, ODD, ONE_ROW = SHAPES = [(2, 8, 8), (3, 7, 9), (2, 1, 5)]


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (116, 2), (12, 3), (6, 1)])
def test_channel_shuffle_moves_every_channel_where_pytorch_does(channels: int, groups: int) -> None:
    x = tools.random_images(2, 3, 5, channels)
    theirs = torch_ref.ShuffleBlock(groups)(tools.to_nchw(x))
    np.testing.assert_array_equal(fs.channel_shuffle(jnp.asarray(x), groups), nhwc(theirs))


def test_channel_shuffle_interleaves_two_halves() -> None:
    x = jnp.arange(6).reshape(1, 1, 1, 6)
    assert fs.channel_shuffle(x.astype(float), 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(("channels", "ratio"), [(8, 0.5), (10, 0.3), (116, 0.25)])
def test_channel_split_cuts_where_pytorch_does(channels: int, ratio: float) -> None:
    x = tools.random_images(2, 3, 5, channels)
    theirs = torch_ref.SplitBlock(ratio)(tools.to_nchw(x))
    ours = fs.channel_split(jnp.asarray(x), int(channels * ratio))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, nhwc(b))


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A copy: JAX may read a NumPy array later, and PyTorch changes its statistics in place."""
    return jnp.asarray(tensor.detach().numpy().copy())


def running_statistics(bn: torch.nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance, which PyTorch changes in place."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.running_mean, bn.running_var


def copy_units(units: Iterable[ConvBN], modules: Iterable[tuple[torch.nn.Module, torch.nn.Module]]) -> None:
    """From pairs of a convolution and its batch normalisation."""
    for unit, (conv, bn) in zip(units, modules, strict=True):
        assert isinstance(conv, torch.nn.Conv2d)
        assert isinstance(bn, torch.nn.BatchNorm2d)
        unit.conv.kernel[...] = to_jax(conv.weight.permute(2, 3, 1, 0))
        unit.bn.scale[...], unit.bn.bias[...] = (to_jax(p) for p in (bn.weight, bn.bias))
        unit.bn.mean[...], unit.bn.var[...] = map(to_jax, running_statistics(bn))


def basic_block(channels: int, split_ratio: float = 0.5) -> tuple[fs.BasicBlock, torch.nn.Module]:
    theirs = randomise(torch_ref.BasicBlock(channels, split_ratio)).double()
    architecture = fs.Architecture(stage_widths=(channels,), stage_blocks=(1,), split_ratio=split_ratio)
    ours = fs.BasicBlock(channels, architecture, **options())
    copy_units(ours.branch, [(theirs.conv1, theirs.bn1), (theirs.conv2, theirs.bn2), (theirs.conv3, theirs.bn3)])
    return ours, theirs


def down_block(in_channels: int, out_channels: int) -> tuple[fs.DownBlock, torch.nn.Module]:
    theirs = randomise(torch_ref.DownBlock(in_channels, out_channels)).double()
    architecture = fs.Architecture(stage_widths=(out_channels,), stage_blocks=(0,), down_relu=False)
    ours = fs.DownBlock(in_channels, out_channels, architecture, **options())
    left, right = theirs.branch1, theirs.branch2
    copy_units(ours.left, [(left[0], left[1]), (left[2], left[3])])
    copy_units(ours.right, [(right[0], right[1]), (right[2], right[3]), (right[4], right[5])])
    return ours, theirs


def options() -> dict:
    return {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0), "conv_bias": False}


BLOCKS: dict[str, tuple[int, Callable]] = {
    "basic-12": (12, lambda: basic_block(12)),
    "basic-58-of-116": (116, lambda: basic_block(116)),
    "basic-split-0.3": (20, lambda: basic_block(20, 0.3)),
    "down-24-to-48": (24, lambda: down_block(24, 48)),
    "down-3-to-10": (3, lambda: down_block(3, 10)),
}


# Of either kind one block with maps of every shape, those of other widths with one.
CASES = [(block, shape) for block in ("basic-12", "down-3-to-10") for shape in SHAPES]
CASES += [("basic-58-of-116", ODD), ("basic-split-0.3", EVEN), ("down-24-to-48", EVEN)]


@pytest.mark.parametrize(("block", "shape"), CASES, ids=str)
def test_block_in_eval_mode(block: str, shape: tuple[int, int, int]) -> None:
    channels, make = BLOCKS[block]
    ours, theirs = make()
    x = tools.random_images(*shape, channels)
    ours.eval()
    theirs.eval()
    y = np.asarray(nnx.jit(lambda block, x: block(x))(ours, jnp.asarray(x)))
    assert relative_difference(y, nhwc(theirs(tools.to_nchw(x)))) <= tools.FLOAT64_BAR


@pytest.mark.parametrize(("block", "shape"), CASES, ids=str)
def test_block_in_train_mode_with_every_gradient_and_statistic(block: str, shape: tuple[int, int, int]) -> None:
    channels, make = BLOCKS[block]
    ours, theirs = make()
    x = tools.random_images(*shape, channels)

    their_x = tools.to_nchw(x).requires_grad_()
    theirs.train()
    their_y = theirs(their_x)
    cotangent = np.random.default_rng(3).standard_normal(nhwc(their_y).shape)
    their_y.backward(tools.to_nchw(cotangent))

    structure, parameters, statistics = functional.split(ours)

    def weighted_sum(parameters, x):
        y, new_statistics = structure.apply(parameters, statistics, x)
        return jnp.sum(y * cotangent), (y, new_statistics)

    gradient = jax.jit(jax.grad(weighted_sum, (0, 1), has_aux=True))
    gradients, (y, new_statistics) = jax.device_get(gradient(parameters, jnp.asarray(x)))
    assert relative_difference(y, nhwc(their_y)) <= tools.FLOAT64_BAR
    assert their_x.grad is not None
    assert relative_difference(gradients[1], nhwc(their_x.grad)) <= tools.FLOAT64_BAR

    # The same copy that filled our block puts PyTorch's gradients and statistics under our names.
    expected, with_gradients = make()
    with_gradients.load_state_dict(theirs.state_dict())
    for parameter, source in zip(with_gradients.parameters(), theirs.parameters(), strict=True):
        parameter.data = source.grad
    units = [expected.branch] if isinstance(expected, fs.BasicBlock) else [expected.left, expected.right]
    modules = [module for module in with_gradients.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in with_gradients.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    copy_units([unit for branch in units for unit in branch], list(zip(modules, norms, strict=True)))
    _, expected_gradients, expected_statistics = functional.split(expected)
    names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(ours, nnx.Param))]
    difference, name = worst_difference(
        dict(zip(names, gradients[0], strict=True)), dict(zip(names, map(np.asarray, expected_gradients), strict=True))
    )
    assert difference <= tools.FLOAT64_BAR, name
    for a, b in zip(new_statistics, expected_statistics, strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            assert relative_difference(a, np.asarray(b)) <= tools.FLOAT64_BAR


@pytest.mark.parametrize("block", ["basic-12", "down-3-to-10"])
def test_gradients_in_eval_mode_are_those_of_finite_differences(block: str) -> None:
    """Those of the running statistics too, which PyTorch does not have."""
    channels, make = BLOCKS[block]
    ours, _ = make()
    ours.eval()
    structure, parameters, statistics = functional.split(ours)
    floats = [each for each in statistics if jnp.issubdtype(each.dtype, jnp.floating)]

    def output(parameters, floats, x):
        some = iter(floats)
        whole = [next(some) if jnp.issubdtype(each.dtype, jnp.floating) else each for each in statistics]
        return structure.apply(parameters, whole, x)[0]

    x = jnp.asarray(tools.random_images(*SHAPES[1], channels))
    # A central difference is exact to the square of its step.
    jax.test_util.check_grads(jax.jit(output), (parameters, floats, x), 1, ["rev"], eps=1e-5, atol=1e-8, rtol=1e-7)


def depthwise(block: fs.BasicBlock | fs.DownBlock) -> list[ConvBN]:
    units = block.branch if isinstance(block, fs.BasicBlock) else [*block.left, *block.right]
    return [unit for unit in units if unit.conv.groups > 1]


def rectify_depthwise(block: fs.BasicBlock | fs.DownBlock) -> None:
    depthwise(block)[0].relu = True


def keep_the_resolution(block: fs.DownBlock) -> None:
    for unit in depthwise(block):
        unit.conv.stride = 1


def rectify_one_branch(block: fs.DownBlock) -> None:
    block.right[0].relu = block.right[2].relu = True


def leave_a_relu_out(block: fs.BasicBlock) -> None:
    block.branch[2].relu = False


def add_another_epsilon(block: fs.BasicBlock) -> None:
    block.branch[2].bn.epsilon = 0.5


def add_numpys_epsilon(block: fs.BasicBlock) -> None:
    for unit in block.branch:
        unit.bn.epsilon = np.float64(0.5)


def add_a_layer(block: fs.BasicBlock) -> None:
    block.branch.append(ConvBN(6, 6, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(1)))


@pytest.mark.parametrize(
    ("block", "change"),
    [
        ("basic-12", rectify_depthwise),
        ("basic-12", leave_a_relu_out),
        ("basic-12", add_another_epsilon),
        ("basic-12", add_numpys_epsilon),
        ("basic-12", add_a_layer),
        ("down-3-to-10", rectify_depthwise),
        ("down-3-to-10", rectify_one_branch),
        ("down-3-to-10", keep_the_resolution),
    ],
)
def test_a_block_whose_layers_were_changed_computes_what_they_do(block: str, change: Callable, monkeypatch) -> None:
    channels, make = BLOCKS[block]
    ours, _ = make()
    change(ours)
    x = jnp.asarray(tools.random_images(*SHAPES[1], channels))
    found = nnx.jit(lambda block, x: block(x))(nnx.clone(ours), x)
    monkeypatch.setattr(blocks, "applies", lambda *_arrays: False)
    layer_by_layer = nnx.jit(lambda block, x: block(x))(ours, x)
    assert found.shape == layer_by_layer.shape
    assert relative_difference(np.asarray(found), np.asarray(layer_by_layer)) <= tools.FLOAT64_BAR


@pytest.mark.parametrize(("block", "channels"), [("basic-12", 16), ("basic-12", 13), ("down-3-to-10", 4)])
def test_a_block_refuses_other_channels_than_its_own(block: str, channels: int) -> None:
    _, make = BLOCKS[block]
    ours, _ = make()
    with pytest.raises(ValueError, match=r"takes \[n, h, w, \d+\], not \(1, 2, 2, \d+\)"):
        ours(jnp.zeros((1, 2, 2, channels)))


@pytest.mark.parametrize(("block", "size"), [("basic-12", 1), ("down-3-to-10", 2)])
def test_blocks_refuse_one_value_per_channel_in_train_mode(block: str, size: int) -> None:
    channels, make = BLOCKS[block]
    ours, _ = make()
    with pytest.raises(ValueError, match="more than one value per channel"):
        ours(jnp.zeros((1, size, size, channels)))


@pytest.mark.parametrize("block", ["basic-12", "down-3-to-10"])
def test_gradients_and_statistics_where_jax_knows_what_varies_among_devices(block: str) -> None:
    channels, make = BLOCKS[block]
    ours, _ = make()
    x = jnp.asarray(tools.random_images(*SHAPES[1], channels))

    def step(block: nnx.Module) -> Callable:
        structure, parameters, statistics = functional.split(block)

        def loss(parameters, x):
            y, new_statistics = structure.apply(parameters, statistics, x)
            return jnp.sin(y).sum(), new_statistics

        return lambda x: jax.grad(loss, has_aux=True)(parameters, x)

    mesh = jax.sharding.Mesh(jax.devices()[:1], ("batch",))
    divided = step(nnx.view(ours, axis_name="batch"))
    found = jax.jit(jax.shard_map(divided, mesh=mesh, in_specs=P("batch"), out_specs=P()))(x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.jit(step(ours))(x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("shape", [(2, 4, 4, 6), (2, 1, 1, 3), (32, 5, 3, 1)], ids=str)
def test_batch_norm_output_statistics_and_count(shape: tuple[int, ...], mean: float) -> None:
    x = np.random.default_rng(0).standard_normal(shape) + mean
    theirs = randomise(torch.nn.BatchNorm2d(shape[-1])).double()
    ours = BatchNorm(shape[-1], param_dtype=jnp.float64)
    ours.scale[...], ours.bias[...] = (to_jax(p) for p in (theirs.weight, theirs.bias))
    ours.mean[...], ours.var[...] = map(to_jax, running_statistics(theirs))
    assert theirs.num_batches_tracked is not None
    before = int(theirs.num_batches_tracked)
    outputs = [(np.asarray(ours(jnp.asarray(x))), nhwc(theirs(tools.to_nchw(x)))) for _ in range(3)]
    assert relative_difference(*outputs[-1]) <= tools.FLOAT64_BAR
    their_mean, their_var = (tensor.numpy() for tensor in running_statistics(theirs))
    assert relative_difference(np.asarray(ours.mean[...]), their_mean) <= tools.FLOAT64_BAR
    assert relative_difference(np.asarray(ours.var[...]), their_var) <= tools.FLOAT64_BAR
    assert int(ours.num_batches_tracked[...]) == 3 == int(theirs.num_batches_tracked) - before


@pytest.mark.usefixtures("optimised")
def test_batch_norm_in_float32_does_not_cancel_far_from_zero() -> None:
    x = (np.random.default_rng(0).standard_normal((64, 8, 8, 4)) + 1e4).astype(np.float32)
    y = BatchNorm(4, param_dtype=jnp.float32)(jnp.asarray(x))
    assert np.asarray(y).std() == pytest.approx(1, abs=0.01)


def test_batch_norm_refuses_one_value_per_channel_as_pytorch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1))
    with pytest.raises(ValueError, match="more than one value"):
        BatchNorm(3, param_dtype=jnp.float64)(jnp.zeros((1, 1, 1, 3)))


def test_statistics_carry_no_gradient() -> None:
    structure, parameters, statistics = functional.split(BatchNorm(3, param_dtype=jnp.float64))
    x = jnp.asarray(tools.random_images(2, 3, 3))

    def sum_of_statistics(x):
        _, (mean, count, var) = structure.apply(parameters, statistics, x)
        return mean.sum() + var.sum() + count

    np.testing.assert_array_equal(jax.grad(sum_of_statistics)(x), np.zeros(x.shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_max_pool_with_its_gradient_under_jit(shape: tuple[int, int, int]) -> None:
    x = tools.random_images(*shape)
    their_x = tools.to_nchw(x).requires_grad_()
    their_y = torch.nn.MaxPool2d(3, stride=2, padding=1)(their_x)
    cotangent = np.random.default_rng(3).standard_normal(nhwc(their_y).shape)
    their_y.backward(tools.to_nchw(cotangent))
    y, pullback = jax.jit(lambda x: jax.vjp(max_pool, x))(jnp.asarray(x))
    np.testing.assert_array_equal(y, nhwc(their_y))
    assert their_x.grad is not None
    assert relative_difference(pullback(jnp.asarray(cotangent))[0], nhwc(their_x.grad)) <= tools.FLOAT64_BAR


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_with_bias(kernel_size: int) -> None:
    theirs = randomise(torch.nn.Conv2d(3, 5, kernel_size, padding=kernel_size // 2, stride=2)).double()
    ours = Conv(
        3, 5, kernel_size=kernel_size, stride=2, bias=True,
        dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0),
    )  # fmt: skip
    ours.kernel[...] = to_jax(theirs.weight.permute(2, 3, 1, 0))
    assert ours.bias is not None
    assert theirs.bias is not None
    ours.bias[...] = to_jax(theirs.bias)
    x = tools.random_images(2, 7, 10)
    assert relative_difference(np.asarray(ours(jnp.asarray(x))), nhwc(theirs(tools.to_nchw(x)))) <= tools.FLOAT64_BAR


def test_only_layers_as_the_paper_has_them_are_plain() -> None:
    class Other(ConvBN):
        """Which may compute anything."""

    layer = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    assert ConvBN(2, 3, **layer).is_plain
    assert not ConvBN(2, 3, conv_bias=True, **layer).is_plain
    assert not ConvBN(2, 3, relu=True, negative_slope=0.1, **layer).is_plain
    assert not Other(2, 3, **layer).is_plain
