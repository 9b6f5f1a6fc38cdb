"""Files that are written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def named_in_errors(path: str | Path) -> Iterator[None]:
    """Errors of writing to an open file, such as a full disk, do not say which file it is; inside, they do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write beside ``path``, renamed to it at the end, so that no reader ever sees half a file.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with named_in_errors(path), open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Writes a whole file or none, as ``open_whole``."""
    with open_whole(path) as file:
        file.write(data)
