"""The CPU engine's operations; ``info()`` tells what runs."""

from flax_shufflenet.ops.native import Info, info

__all__ = ["Info", "info"]
