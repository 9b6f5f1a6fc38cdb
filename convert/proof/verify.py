"""The proof: the original tensors run in PyTorch, the converted net in JAX, and the two are compared.

Three bars, none of them a guessed tolerance. In float64 the two nets must be the same function, so their
outputs agree to 1e-10. In float32 JAX must come as close to the float64 result as PyTorch does, within a factor
of two. And in float32 both must choose the same class for every image, but where PyTorch's own rounding already
decides between two classes.

All of it on the CPU, whatever else JAX finds, and where it finds an accelerator, there as well. Products are exact
to their dtype in both places: an accelerator's default, which rounds them to TF32 or bfloat16, says nothing of the
conversion.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.typing import DTypeLike

from convert.errors import ConvertError
from convert.layouts import Layout
from convert.mapping import Tensors
from flax_shufflenet import Architecture, functional
from flax_shufflenet.system import cpus
from flax_shufflenet.weights import cast_floats, from_arrays

Device = Any  # jax.Device, which type checkers take for a variable

FLOAT64_BAR = 1e-10
FLOAT32_BAR = 2.0
ACCELERATOR_FLOAT32_BAR = 4.0
"""Of JAX's float32 error as a multiple of PyTorch's on the CPU; accelerators add in another order."""


class LayerComparison(NamedTuple):
    """One convolution with its batch normalisation; errors are relative to the layer's largest output."""

    name: str
    shape: tuple[int, ...]
    float64: float
    """Between the two nets in float64."""
    torch_float32: float
    jax_float32: float
    """Of each net in float32, against PyTorch in float64; root mean square."""


@dataclass(frozen=True)
class Proof:
    """What was measured on one device. ``failure`` says which bar was missed and where, and is None when none was;
    it covers ``elsewhere``, the same on the accelerator, where there is one."""

    device: str
    float32_bar: float
    batches: tuple[str, ...]
    float64: float
    torch_float32: float
    jax_float32: float
    top1_agreeing: int
    top1_images: int
    layers: tuple[LayerComparison, ...]
    elsewhere: "Proof | None" = None

    @property
    def float32_ratio(self) -> float:
        """JAX's float32 error as a multiple of PyTorch's own."""
        return self.jax_float32 / self.torch_float32 if self.torch_float32 else float(self.jax_float32 > 0)

    @property
    def first_diverging(self) -> int | None:
        """The place of the first layer beyond the bar; None where there is none."""
        return next((place for place, layer in enumerate(self.layers) if not layer.float64 <= FLOAT64_BAR), None)

    @property
    def failure(self) -> str | None:
        if self.first_diverging is not None:
            return f"the nets differ from layer {self.layers[self.first_diverging].name} on"
        if not self.float64 <= FLOAT64_BAR:
            return f"the outputs differ by {self.float64:.1e} in float64"
        if not self.float32_ratio <= self.float32_bar:
            return f"JAX's float32 error is {self.float32_ratio:.1f} times PyTorch's own"
        if self.top1_agreeing != self.top1_images:
            return f"the nets choose another class for {self.top1_images - self.top1_agreeing} images"
        if self.elsewhere is not None and self.elsewhere.failure:
            return f"on {self.elsewhere.device} {self.elsewhere.failure}"
        return None


class _Run(NamedTuple):
    """A net's result, and each part's output under the part's Flax name; everything NHWC."""

    output: np.ndarray
    layers: dict[str, np.ndarray]


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, as a share of the largest value of ``b``; 0 where both are all zeros."""
    largest = np.abs(b).max()
    difference = np.abs(a.astype(np.float64) - b).max()
    return float(difference / largest) if largest else float(difference)


def relative_error(a: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square of the difference, as a share of ``truth``'s root mean square."""
    size = np.sqrt(np.mean(np.square(truth)))
    error = np.sqrt(np.mean(np.square(a.astype(np.float64) - truth)))
    return float(error / size) if size else float(error)


def random_images(layout: Layout, *architectures: Architecture) -> list[np.ndarray]:
    """Batches of noise, float64 [N, H, W, 3], of sizes that the nets take; values as they are fed in training."""
    architecture = max(architectures, key=lambda architecture: architecture.pool_size)
    if len({architecture.pool_size for architecture in architectures}) > 1:
        # The nets pool alike only where the last map is one window.
        shapes = [(4, 224, 224, 3)] if architecture.stem_pool else [(16, 32, 32, 3), (2, 31, 29, 3)]
    elif architecture.stem_pool and architecture.pool_size:
        # Both leave a map of which the window is one, or the only one.
        exact = layout.name in ("pytorchcv", "pytorchcv_b")
        shapes = [(4, 224, 224, 3), (1, 201, 219, 3) if exact else (1, 237, 251, 3)]
    elif architecture.stem_pool:
        shapes = [(8, 64, 64, 3), (2, 97, 141, 3)]
    else:
        shapes = [(16, 32, 32, 3), (2, 33, 47, 3)]
    random = np.random.default_rng(0)
    if layout.name == "megvii":  # its net takes raw pixels
        return [random.integers(0, 256, shape).astype(np.float64) for shape in shapes]
    return [random.standard_normal(shape) for shape in shapes]


def verify(
    layout: Layout,
    torch_architecture: Architecture,
    tensors: Tensors,
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    images: Sequence[np.ndarray] | None = None,
    devices: Sequence[Device] | None = None,
) -> Proof:
    """Runs ``tensors`` in the layout's PyTorch net and ``arrays`` in the Flax net, on the same images.

    ``images`` are batches [N, H, W, 3], normalised; noise unless given. Layers are compared on the first.
    The two architectures differ only in what a layout expresses otherwise, such as a folded bias.
    ``devices`` are those that JAX runs on, one or two; by default ``proving_devices()``.

    Raises:
        ConvertError: the tensors do not load into the layout's net, or the outputs overflow.
    """
    batches = random_images(layout, torch_architecture, architecture) if images is None else images
    reference = layout.reference_to_fill(torch_architecture).double()
    try:
        reference.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        first_lines = " ".join(str(error).split())[:200]
        raise ConvertError(f"the tensors do not load into the {layout.name} net: {first_lines}") from None
    reference.eval()
    names = {part.flax: part.bn for part in layout.parts_of(torch_architecture)}

    # XLA compiles each program while the next is traced, and the last ones while PyTorch runs. Tracing cannot be shared
    # between threads: capturing a module's layers changes its class while it lasts.
    devices = proving_devices() if devices is None else devices
    with ThreadPoolExecutor(cpus.available()) as pool:
        in_jax = [
            pool.submit(_Traced(net, batch, with_layers=place == 0).run)
            for device in devices
            for net in (_FlaxNet(architecture, arrays, dtype, device) for dtype in (jnp.float32, jnp.float64))
            for place, batch in enumerate(batches)
        ]
        kept = [names, *[{}] * (len(batches) - 1)]  # of whose layers the maps are compared
        torch_64 = [_run_torch(reference, own, batch) for own, batch in zip(kept, batches, strict=True)]
        reference.float()
        torch_32 = [
            _run_torch(reference, own, batch.astype(np.float32)) for own, batch in zip(kept, batches, strict=True)
        ]
        jax_all = [run.result() for run in in_jax]
    for run in (*torch_32, *torch_64):
        if not np.isfinite(run.output).all():
            raise ConvertError("the original net's outputs overflow on ordinary images; its weights are damaged")
    proof = None
    for place, device in reversed(list(enumerate(devices))):
        own = jax_all[2 * len(batches) * place :]
        jax_32, jax_64 = own[: len(batches)], own[len(batches) : 2 * len(batches)]
        proof = _compare(device, batches, names, torch_32, torch_64, jax_32, jax_64, elsewhere=proof)
    assert proof is not None
    return proof


def proving_devices() -> list[Device]:
    """The CPU, and the first accelerator where JAX has one; without the CPU where ``JAX_PLATFORMS`` leaves it out."""
    accelerators = [device for device in jax.devices() if device.platform != "cpu"]
    try:
        return [jax.devices("cpu")[0], *accelerators[:1]]
    except RuntimeError:
        return accelerators[:1]


def _compare(
    device: Device,
    batches: Sequence[np.ndarray],
    names: Mapping[str, str],
    torch_32: Sequence[_Run],
    torch_64: Sequence[_Run],
    jax_32: Sequence[_Run],
    jax_64: Sequence[_Run],
    *,
    elsewhere: Proof | None,
) -> Proof:
    layers = tuple(
        LayerComparison(
            name,
            jax_64[0].layers[flax_name].shape,
            relative_difference(jax_64[0].layers[flax_name], torch_64[0].layers[flax_name]),
            relative_error(torch_32[0].layers[flax_name], torch_64[0].layers[flax_name]),
            relative_error(jax_32[0].layers[flax_name], torch_64[0].layers[flax_name]),
        )
        for flax_name, name in names.items()
    )
    bar = FLOAT32_BAR if device.platform == "cpu" else ACCELERATOR_FLOAT32_BAR
    agreeing, count = _top1_agreement(torch_32, torch_64, jax_32, bar)
    return Proof(
        device="cpu" if device.platform == "cpu" else device.device_kind,
        float32_bar=bar,
        batches=tuple("x".join(map(str, batch.shape)) for batch in batches),
        float64=max(relative_difference(a.output, b.output) for a, b in zip(jax_64, torch_64, strict=True)),
        torch_float32=_pooled_error(torch_32, torch_64),
        jax_float32=_pooled_error(jax_32, torch_64),
        top1_agreeing=agreeing,
        top1_images=count,
        layers=layers,
        elsewhere=elsewhere,
    )


def _pooled_error(runs: Sequence[_Run], truth: Sequence[_Run]) -> float:
    outputs, true_outputs = (np.concatenate([run.output for run in some]) for some in (runs, truth))
    return relative_error(outputs, true_outputs)


def _top1_agreement(
    torch_32: Sequence[_Run], torch_64: Sequence[_Run], jax_32: Sequence[_Run], bar: float
) -> tuple[int, int]:
    """Images whose highest output is the same; where two are within PyTorch's rounding, either counts."""
    agreeing = count = 0
    for in_torch, truth, in_jax in zip(torch_32, torch_64, jax_32, strict=True):
        agreeing += same_choices(in_jax.output, in_torch.output, truth.output, bar)
        count += len(truth.output)
    return agreeing, count


def same_choices(scores: np.ndarray, in_torch: np.ndarray, truth: np.ndarray, bar: float = FLOAT32_BAR) -> int:
    """Rows whose highest score is where ``truth`` has its own, or within ``bar`` times PyTorch's rounding of it."""
    rounding = 2 * bar * np.abs(in_torch - truth).max(axis=1)
    chosen = np.take_along_axis(truth, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    return int(np.sum(truth.max(axis=1) - chosen <= rounding))


def flax_output(architecture: Architecture, arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """What the Flax net computes in float64 for normalised images [N, H, W, 3]."""
    net = _FlaxNet(architecture, arrays, jnp.float64, proving_devices()[0])
    return _Traced(net, images, with_layers=False).run().output


def _run_torch(net: torch.nn.Module, names: Mapping[str, str], images: np.ndarray) -> _Run:
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):  # noqa: ANN202
        def hook(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [net.get_submodule(bn).register_forward_hook(keep(name)) for name, bn in names.items()]
    try:
        with torch.no_grad():
            output = net(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    except ValueError as error:
        raise ConvertError(f"images of {images.shape[1]}x{images.shape[2]}: {error}") from None
    finally:
        for handle in handles:
            handle.remove()
    return _Run(output.numpy(), {name: value.numpy().transpose(0, 2, 3, 1) for name, value in outputs.items()})


class _FlaxNet:
    """The Flax net in one dtype and on one device, taken apart."""

    def __init__(
        self, architecture: Architecture, arrays: Mapping[str, np.ndarray], dtype: DTypeLike, device: Device
    ) -> None:
        self.dtype = dtype = np.dtype(dtype)
        self.device = device
        # A scope of its own, so that float64 is possible here whatever the caller's JAX is set to.
        with jax.enable_x64(True), jax.default_device(device):
            cast = cast_floats(arrays, dtype)
            model = from_arrays(architecture, cast, dtype=dtype)
            self.structure, *variables = functional.split(model)
            self.parameters, self.statistics = jax.device_put(variables, device)


def compiler_options(dtype: np.dtype, platform: str) -> dict[str, Any] | None:
    """Float64 proves that two functions are the same, for which unoptimised machine code does, and is ready sooner."""
    in_haste = dtype == np.float64 and platform == "cpu"
    return {"xla_backend_optimization_level": 0} if in_haste else None


class _Traced:
    """A Flax net, traced for one batch but not yet compiled."""

    def __init__(self, net: _FlaxNet, images: np.ndarray, *, with_layers: bool) -> None:
        self._compiler_options = compiler_options(net.dtype, net.device.platform)
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            images_there = jax.device_put(images.astype(net.dtype), net.device)
            self._inputs = net.parameters, net.statistics, images_there
            try:
                apply = _apply_with_layers if with_layers else _apply
                self._lowered = apply.lower(net.structure, *self._inputs)
            except ValueError as error:
                raise ConvertError(f"images of {images.shape[1]}x{images.shape[2]}: {error}") from None

    def run(self) -> _Run:
        with jax.enable_x64(True):
            compiled = self._lowered.compile(compiler_options=self._compiler_options)
            output, layers = compiled(*self._inputs)
            return _Run(np.asarray(output), {name: np.asarray(value) for name, value in layers.items()})


@partial(jax.jit, static_argnums=0)
def _apply(
    structure: functional.Functional, parameters: list[jax.Array], statistics: list[jax.Array], images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    return structure.apply(parameters, statistics, images)[0], {}


@partial(jax.jit, static_argnums=0)
def _apply_with_layers(
    structure: functional.Functional, parameters: list[jax.Array], statistics: list[jax.Array], images: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    model = structure.model(parameters, statistics)
    output, captured = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)(images)
    layers = {}
    for path, variable in nnx.to_flat_state(captured):
        if path[-2:] == ("bn", "__call__"):
            (layers[".".join(map(str, path[:-2]))],) = variable.get_value()
    return output, layers
