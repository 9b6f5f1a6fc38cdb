"""Writes the net that all contenders run: as a PyTorch checkpoint, through the converter for Flax, and as ONNX."""

import torch

import flax_shufflenet as fs
from benchmarks.case import CLASSES, Case
from convert.layouts import LAYOUTS
from convert.mapping import to_arrays
from flax_shufflenet.weights import from_arrays
from torch_ref import ShuffleNetV2
from torch_ref.randomise import randomise


def write(case: Case, onnx: bool) -> None:
    """Fresh weights for training. For inference random weights and statistics, under which no activation dies out:
    values near zero would slow down some contenders and not others."""
    torch.manual_seed(0)
    net = ShuffleNetV2(case.size, CLASSES)
    if case.task == "infer":
        randomise(net)
    torch.save(net.state_dict(), case.torch_weights)
    architecture = fs.seed(case.size, CLASSES)
    arrays = to_arrays(LAYOUTS["seed"], architecture, net.state_dict())
    fs.save(from_arrays(architecture, arrays), case.flax_weights)
    if onnx:
        images = torch.from_numpy(case.images_nchw())
        torch.onnx.export(net.eval(), (images,), case.onnx_net, dynamo=True, external_data=False, verbose=False)
