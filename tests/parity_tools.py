"""The same net in PyTorch and in JAX, with random weights and random statistics, and how far apart they are."""

import functools
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import quick_compiling
import torch
import torch.nn.functional as F

import flax_shufflenet as fs
from convert import mapping
from convert.layouts import LAYOUTS, Layout
from convert.proof.verify import compiler_options
from flax_shufflenet import Architecture, functional
from flax_shufflenet.weights import cast_floats, flat_arrays, from_arrays
from torch_ref.randomise import keep_from_kinks, randomise

# The bars of float64: the same function; ten steps let rounding grow.
FLOAT64_BAR = 1e-10
FLOAT64_BAR_AFTER_STEPS = 1e-8
# JAX's error in float32 or bfloat16 may be twice PyTorch's; on accelerators, which add in another order, four times.
FLOAT32_BAR = 2.0 if jax.devices()[0].platform == "cpu" else 4.0


def random_images(batch: int, height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, height, width, channels))


def to_nchw(images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)


class Results(NamedTuple):
    """Everything that a net gives for one batch; gradients and statistics under their Flax names and shapes."""

    eval_output: np.ndarray
    train_output: np.ndarray
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def split_statistics(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Running means and variances, and the rest without the counts."""
    statistics = {name: array for name, array in arrays.items() if name.endswith((".mean", ".var"))}
    rest = {
        name: array
        for name, array in arrays.items()
        if name not in statistics and not name.endswith(".num_batches_tracked")
    }
    return statistics, rest


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_probabilities, labels[:, None], axis=1))


class JaxNet:
    """A net's structure with one compiled function for both modes, the gradients and the statistics."""

    def __init__(self, architecture: Architecture, arrays: Mapping[str, np.ndarray], dtype: jnp.dtype) -> None:
        self.architecture, self.dtype = architecture, dtype
        model = self._model(arrays)
        self.eval_structure, self._parameters, self._statistics = functional.split(model)
        model.train()
        self.train_structure, _, _ = functional.split(model)

    def _model(self, arrays: Mapping[str, np.ndarray]) -> fs.ShuffleNetV2:
        parameters = jnp.promote_types(self.dtype, jnp.float32)
        return from_arrays(self.architecture, cast_floats(arrays, parameters), dtype=self.dtype)

    def split(self, arrays: Mapping[str, np.ndarray]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Parameters and statistics in the order that the compiled function takes them in."""
        _, parameters, statistics = functional.split(self._model(arrays))
        return parameters, statistics

    def lower(self, shape: tuple[int, ...]) -> jax.stages.Lowered:
        def everything(parameters, statistics, images, labels):
            def loss(parameters):
                output, new_statistics = self.train_structure.apply(parameters, statistics, images)
                wide = jnp.promote_types(output.dtype, jnp.float32)
                return cross_entropy(output.astype(wide), labels), (output, new_statistics)

            gradients, (train_output, new_statistics) = jax.grad(loss, has_aux=True)(parameters)
            eval_output, _ = self.eval_structure.apply(parameters, statistics, images)
            return eval_output, train_output, gradients, new_statistics

        images = jax.ShapeDtypeStruct(shape, self.dtype)
        labels = jax.ShapeDtypeStruct(shape[:1], np.int64)
        return jax.jit(everything).lower(self._parameters, self._statistics, images, labels)

    def named(self, parameters: list[jax.Array], statistics: list[jax.Array]) -> dict[str, np.ndarray]:
        model = self.train_structure.model(parameters, statistics)
        return {name: np.asarray(array) for name, array in flat_arrays(model).items()}


class Pair(NamedTuple):
    """One architecture on both sides, ready to run any weights on batches of one shape; in JAX, in one precision."""

    layout: Layout
    architecture: Architecture
    torch_net: torch.nn.Module
    jax_net: JaxNet
    compiled: jax.stages.Compiled

    def arrays(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return mapping.to_arrays(self.layout, self.architecture, tensors)

    def run_jax(self, tensors: Mapping[str, torch.Tensor], images: np.ndarray, labels: np.ndarray) -> Results:
        net = self.jax_net
        outputs = self.compiled(*net.split(self.arrays(tensors)), images.astype(net.dtype), labels)
        eval_output, train_output, gradients, new_statistics = outputs
        statistics, named_gradients = split_statistics(net.named(gradients, new_statistics))
        return Results(np.asarray(eval_output), np.asarray(train_output), named_gradients, statistics)

    def run_torch(
        self,
        dtype: str,
        tensors: Mapping[str, torch.Tensor],
        images: np.ndarray,
        labels: np.ndarray,
        kinds: Collection[str] = Results._fields,
    ) -> Results:
        """Eval output first, then one pass in train mode with the gradients of the mean cross-entropy. bfloat16 is
        PyTorch's autocast. Without an eval output or gradients among the ``kinds``, these are left empty."""
        half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
        parameters = torch.float32 if dtype == "bfloat16" else getattr(torch, dtype)
        net = self.torch_net.to(parameters)
        net.load_state_dict(dict(tensors))
        x = to_nchw(images, parameters)
        eval_output = torch.empty(0)
        if "eval_output" in kinds:
            net.eval()
            with torch.no_grad(), half:
                eval_output = net(x).to(parameters)
        net.train()
        with half, torch.set_grad_enabled("gradients" in kinds):
            train_output = net(x).to(parameters)
        values = net.state_dict()
        if "gradients" in kinds:
            net.zero_grad()
            F.cross_entropy(train_output, torch.from_numpy(labels)).backward()
            for name, parameter in net.named_parameters():
                assert parameter.grad is not None, name
                values[name] = parameter.grad
        statistics, gradients = split_statistics(self.arrays(values))
        gradients = gradients if "gradients" in kinds else {}
        return Results(eval_output.numpy(), train_output.detach().numpy(), gradients, statistics)


@functools.cache
def make_pair(architecture: Architecture, shape: tuple[int, ...], dtype: str) -> Pair:
    layout = LAYOUTS["seed"]
    torch_net = layout.build_reference(architecture)
    arrays = mapping.to_arrays(layout, architecture, torch_net.state_dict())
    jax_net = JaxNet(architecture, arrays, jnp.dtype(dtype))
    options = compiler_options(jax_net.dtype, jax.default_backend()) or quick_compiling.AS_USERS_DO
    compiled = jax_net.lower(shape).compile(options)
    return Pair(layout, architecture, torch_net, jax_net, compiled)


def random_tensors(pair: Pair) -> dict[str, torch.Tensor]:
    """Random weights and statistics, in float32."""
    return {name: tensor.clone() for name, tensor in randomise(pair.torch_net.float()).state_dict().items()}


def random_tensors_far_from_kinks(pair: Pair) -> dict[str, torch.Tensor]:
    """Random weights whose ReLUs pass or stop a channel as a whole, whatever the batch."""
    net = keep_from_kinks(randomise(pair.torch_net.float()))
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}
