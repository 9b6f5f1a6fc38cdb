"""Folders as tests need them."""

import os
from pathlib import Path


def too_deep(folder: Path) -> Path:
    """A folder in ``folder`` that no path leads to, since it would be longer than the system allows; returns that path.
    Nobody may read it, root neither."""
    here = os.open(folder, os.O_RDONLY)
    path = folder
    while len(str(path)) < 4096:
        os.mkdir("x" * 200, dir_fd=here)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, path = inner, path / ("x" * 200)
    os.close(here)
    return path
