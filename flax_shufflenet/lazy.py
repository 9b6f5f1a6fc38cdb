"""Packages whose names are imported when they are first asked for: JAX, Flax and PyTorch take seconds to import, which
a command's --help and its refusals should not wait for."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def first_asked_for(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` (PEP 562) of the package of this name; ``modules`` says in which of its
    modules each name is."""

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return attribute, names
