"""The step that train.py runs, jitted and with its state donated, against each family's own module in PyTorch."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import parity_tools as tools
import pytest
import quick_compiling
import torch

from benchmarks import training_parity as parity
from benchmarks.differences import pooled_error
from convert.layouts import LAYOUTS
from flax_shufflenet import Architecture, preset
from flax_shufflenet.architecture import FAMILIES
from torch_ref.randomise import keep_from_kinks

# Every kind of block, and one that follows another kind on both sides.
NARROW = {"stage_widths": (12, 20, 34), "stage_blocks": (0, 1, 0), "stem_width": 6, "num_classes": 7}


def narrow(family: str, **fields: Any) -> Architecture:
    usual = preset(family, 0.5)
    return dataclasses.replace(usual, **NARROW, last_width=16 if usual.last_width else 0, **fields)


CASES = {family: (family, narrow(family)) for family in FAMILIES} | {
    "megvii": ("megvii", narrow("megvii", dropout=0.4)),  # as in its net of size 2.0; PyTorch is given the mask
    "pytorchcv_b reversed": ("pytorchcv_b", narrow("pytorchcv_b", shuffle="reverse")),
}
# Each compiles a program of its own.
DIVIDED = [pytest.param(name, marks=pytest.mark.xdist_group(f"step of {name}")) for name in CASES]


def test_every_family_has_a_module_in_pytorch() -> None:
    assert set(FAMILIES) == set(LAYOUTS)


@pytest.mark.parametrize("name", DIVIDED)
def test_a_step_is_pytorchs_in_float64(name: str, float64: None) -> None:
    case = parity.make_case(*CASES[name])
    assert name != "megvii" or any(isinstance(module, torch.nn.Dropout) for module in case.torch_net.modules())
    found = parity.compare(parity.jax_step(case, jnp.float64), parity.torch_step(case, torch.float64))
    assert found.largest <= tools.FLOAT64_BAR, found


@pytest.mark.usefixtures("optimised")
def test_a_float32_step_is_as_exact_as_pytorchs(float64: None) -> None:
    # As wide as people's: with few values to add up, which of the two is nearer to the truth is chance.
    architecture = dataclasses.replace(preset("torchvision", 0.5, 7), stage_blocks=NARROW["stage_blocks"])
    case = parity.make_case("torchvision", architecture, batch_size=16)
    keep_from_kinks(case.torch_net)
    ours = parity.jax_step(case, jnp.float32, compiler_options=quick_compiling.AS_USERS_DO)
    theirs = parity.torch_step(case, torch.float32)
    truth = parity.torch_step(case, torch.float64)
    for name in ("gradients", "statistics", "parameters"):
        error, their_error = (pooled_error(getattr(step, name), getattr(truth, name)) for step in (ours, theirs))
        print(f"{name}: float32 error {error:.1e}, {error / their_error:.2f} times PyTorch's")
        assert error <= tools.FLOAT32_BAR * their_error, name
