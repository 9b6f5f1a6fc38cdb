"""A net as an ONNX file: exported by PyTorch, and run by ONNX Runtime beside the Flax net before it is written."""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Generator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from convert.across import Rewritten
from convert.errors import ConvertError
from convert.proof.verify import FLOAT32_BAR, flax_output, relative_error, same_choices
from flax_shufflenet import Architecture
from flax_shufflenet.images.preprocessing import Preprocessing

ENDING = ".onnx"

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_CHECKED_BATCHES = (1, 5, 16)


class OnnxFile(NamedTuple):
    """The file's content, and a line on what it takes and how it was checked."""

    data: bytes
    summary: str


def require_packages() -> None:
    """Raises:
    ConvertError: a package that writing ONNX needs is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConvertError(f"writing ONNX needs {', '.join(missing)}: pip install 'flax-shufflenet[onnx]'")


def make(
    rewritten: Rewritten,
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    expected: Preprocessing,
) -> OnnxFile:
    """The PyTorch net of ``tensors``, in the layout that ``rewritten`` says, as ONNX, compared with the Flax net of
    ``arrays``.

    It takes float32 [batch, 3, size, size], normalised as the net was trained with, any batch, and returns float32
    [batch, classes], the class scores before the softmax. What ``expected`` says is kept in the model's properties.

    Raises:
        ConvertError: ONNX Runtime's error in float32 is beyond the bar, or it chooses another class.
    """
    net = rewritten.layout.reference_to_fill(rewritten.architecture)
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, strict=True)
    net.eval()
    data = _export(net, expected)
    ratio, images = _check(data, net, architecture, arrays, expected)
    size = expected.size
    batches = ", ".join(map(str, _CHECKED_BATCHES))
    return OnnxFile(
        data,
        f"images float32 [batch, 3, {size}, {size}], normalised, {_channels(expected)}; batches of {batches} in ONNX "
        f"Runtime: its error {ratio:.2f} times PyTorch's own (bar {FLOAT32_BAR:g}), top-1 the same for {images} of "
        f"{images} images",
    )


def _channels(expected: Preprocessing) -> str:
    return "blue, green, red" if expected.bgr else "red, green, blue"


def _export(net: torch.nn.Module, expected: Preprocessing) -> bytes:
    import onnx

    images = torch.zeros(2, 3, expected.size, expected.size)
    with _quiet():
        program = torch.onnx.export(
            net,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    model = program.model_proto
    properties = {
        "resize": expected.resize,
        "channels": _channels(expected),
        "mean": json.dumps(expected.mean),
        "std": json.dumps(expected.std),
        "class_names": json.dumps(expected.class_names),
        "assumed": json.dumps(expected.assumed),
    }
    onnx.helper.set_model_props(model, properties)
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without the exporter's notes on its own deprecations and on packages that the net does not use."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _check(
    data: bytes,
    net: torch.nn.Module,
    architecture: Architecture,
    arrays: Mapping[str, np.ndarray],
    expected: Preprocessing,
) -> tuple[float, int]:
    """ONNX Runtime's float32 error as a multiple of PyTorch's own, and the number of images.

    Raises:
        ConvertError: it is beyond the bar, or another class is chosen.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (sum(_CHECKED_BATCHES), expected.size, expected.size, 3)) / 255
    images = (images - expected.mean) / expected.std
    true_scores = flax_output(architecture, arrays, images)
    all_planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    in_torch, in_onnx = [], []
    for planes in np.split(all_planes, np.cumsum(_CHECKED_BATCHES[:-1])):
        with torch.no_grad():
            in_torch.append(net(torch.from_numpy(planes)).numpy())
        in_onnx.append(session.run(None, {"images": planes})[0])
    torch_scores, onnx_scores = map(np.concatenate, (in_torch, in_onnx))
    own, error = relative_error(torch_scores, true_scores), relative_error(onnx_scores, true_scores)
    ratio = error / own if own else float(error > 0)
    if not ratio <= FLOAT32_BAR:
        raise ConvertError(f"in ONNX Runtime the net's error is {ratio:.1f} times PyTorch's own (bar {FLOAT32_BAR:g})")
    agreeing = same_choices(onnx_scores, torch_scores, true_scores)
    if agreeing != len(true_scores):
        raise ConvertError(f"in ONNX Runtime the net chooses another class for {len(true_scores) - agreeing} images")
    return ratio, len(true_scores)
