"""The bridge between PyTorch checkpoints and Flax nets; the only package that imports both."""

from typing import TYPE_CHECKING

from convert.errors import ConvertError
from flax_shufflenet.lazy import first_asked_for

if TYPE_CHECKING:
    from convert.layouts import LAYOUTS
    from convert.pipeline import load_torch, to_torch

__all__ = ["LAYOUTS", "ConvertError", "load_torch", "to_torch"]

__getattr__, __dir__ = first_asked_for(
    __name__, {"LAYOUTS": "layouts", "load_torch": "pipeline", "to_torch": "pipeline"}
)
