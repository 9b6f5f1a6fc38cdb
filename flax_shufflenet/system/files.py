"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Generator
from pathlib import Path
from typing import IO

# A full disk, a user's full share of it, a file that is larger than the file system or the shell allows.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def why_no_room(error: BaseException | None) -> str | None:
    """What the system says where an error, or one that it was raised from, comes from a full disk; otherwise None."""
    errors = [error]
    for error in errors:  # which grows: an error in cleaning up has both what it was raised from and what it came upon
        if error is None:
            continue
        in_message = re.search(r"\[os_error_code='(\d+)'\]", str(error))  # TensorStore, which raises ValueError
        number = int(in_message[1]) if in_message else getattr(error, "errno", None)
        if number in _NO_ROOM:
            return os.strerror(number)
        errors += [each for each in (error.__cause__, error.__context__) if each not in errors]
        errors += getattr(error, "exceptions", ())
    return None


@contextlib.contextmanager
def named_in_errors(path: str | Path) -> Generator[None]:
    """Errors of writing to an open file, such as a full disk, do not say which file it is; inside, they do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


@contextlib.contextmanager
def open_whole(path: Path) -> Generator[IO[bytes]]:
    """A file to write beside ``path``, renamed to it at the end, so that no reader ever sees half a file.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; nothing is left behind, and what was at
            ``path`` is still there.
    """
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        file = open(beside, "xb")  # noqa: SIM115 - closed before it is renamed; as any file is made, so that the umask holds for it
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with named_in_errors(path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Has the disk keep a renaming, too; it has been done either way."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems have nothing to sync
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a whole file or none, as ``open_whole``."""
    with open_whole(path) as file:
        file.write(data)
