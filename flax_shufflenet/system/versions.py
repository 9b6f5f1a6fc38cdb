"""Which versions a result came from."""

import importlib.metadata
import platform

NOT_INSTALLED = "not installed"


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of these packages; ``NOT_INSTALLED`` for one that is not, as this one is not in a bare checkout."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED
