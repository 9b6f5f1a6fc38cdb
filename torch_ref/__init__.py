"""The PyTorch side: the seed's net, and the nets of other checkpoint layouts under their own key names."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_ref.seed import BasicBlock, DownBlock, ShuffleBlock, ShuffleNetV2, SplitBlock, configs

__all__ = ["BasicBlock", "DownBlock", "ShuffleBlock", "ShuffleNetV2", "SplitBlock", "configs"]


def __getattr__(name: str) -> Any:
    """Imports PyTorch once a net is asked for, so that ``python -m torch_ref`` can say where it is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch_ref import seed

    return getattr(seed, name)
