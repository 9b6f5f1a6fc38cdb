"""The bridge between PyTorch checkpoints and Flax nets; the only package that imports both."""

from convert.api import load_torch, to_torch
from convert.errors import ConvertError
from convert.layouts import LAYOUTS

__all__ = ["LAYOUTS", "ConvertError", "load_torch", "to_torch"]
