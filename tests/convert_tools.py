"""Running ``python -m convert`` in this process, which has already imported PyTorch and JAX."""

import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch

from convert import pipeline
from convert.__main__ import main
from convert.layouts import LAYOUTS
from convert.proof.verify import Proof
from flax_shufflenet import Architecture
from flax_shufflenet.architecture import family_fields
from torch_ref.randomise import randomise


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run_convert(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Outcome:
    with patch.object(sys, "argv", ["convert", *map(str, arguments)]):
        try:
            code = main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what else a conversion does: compiling the nets takes most of its time."""
    proof = Proof("cpu", 2.0, ("1x32x32x3",), 0.0, 1e-7, 1e-7, 1, 1, ())
    monkeypatch.setattr(pipeline, "verify", lambda *_: proof)


def small_architecture(layout: str, num_classes: int = 10, **fields: Any) -> Architecture:
    last = 0 if LAYOUTS[layout].may_end_early else 40
    small: dict[str, Any] = {"stage_widths": (32, 64, 128), "stage_blocks": (1, 2, 1), "stem_width": 8}
    small |= {"last_width": last, "num_classes": num_classes}
    return Architecture(**family_fields(layout) | small | fields)


def random_state_dict(layout: str, architecture: Architecture) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    # Of so few outputs, which noise makes much alike, PyTorch rounds some by luck three times as well as it usually
    # does; 0 is such a seed for this net.
    seed = 1 if layout == "pytorchcv_b" else 0
    return dict(randomise(LAYOUTS[layout].build_reference(architecture), seed).state_dict())


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Names, order, dtypes, shapes and every bit."""
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name
