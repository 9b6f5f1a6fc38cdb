"""The folder of a run's results: one run at a time writes there, and where that fails it is one line."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Generator
from pathlib import Path

from flax_shufflenet.errors import TrainingError
from flax_shufflenet.system.files import why_no_room

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = "run.lock"


@contextlib.contextmanager
def claim(folder: Path, say: Callable[[str], None]) -> Generator[None]:
    """Makes the folder and keeps other runs out of it, until the end or until this process dies, however it does.

    A folder that was made for nothing, since nothing was written there, is removed again. Where the folder's file
    system has no locks, ``say`` is told, and nobody is kept out.

    Raises:
        TrainingError: it cannot be made or written, or another run has claimed it; the message says which process on
            which machine.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_made(folder))
            stack.enter_context(_locked(folder / LOCK_FILE, say))
        except FileExistsError:
            raise TrainingError(f"--out {folder} is a file: choose another") from None
        except OSError as error:
            raise TrainingError(f"--out {folder} cannot be written ({error.strerror}): choose another") from None
        yield


@contextlib.contextmanager
def full_disk_is_one_line(folder: Path, advice: str) -> Generator[None]:
    """Raises:
    TrainingError: what is done inside failed since no room is left in ``folder``; ``advice`` is its end.
    """
    try:
        yield
    except Exception as error:
        reason = why_no_room(error)
        if reason is None:
            raise
        raise TrainingError(f"no room is left in {folder} ({reason}): {advice}") from error


@contextlib.contextmanager
def _made(folder: Path) -> Generator[None]:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Generator[None]:
    descriptor = _open_locked(path, say)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()  # while it is locked: who has opened it in this moment finds that it is another file
        os.close(descriptor)


def _open_locked(path: Path, say: Callable[[str], None]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, say)
            if _is_file_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the run before has just removed it


def _lock(descriptor: int, path: Path, say: Callable[[str], None]) -> None:
    """The kernel lets go of it when the process ends."""
    try:
        if fcntl is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 1000).decode(errors="replace").strip()
        raise TrainingError(
            f"another run is writing to {path.parent}{f' ({owner})' if owner else ''}: wait for it, or choose another "
            "--out"
        ) from None
    except OSError as error:  # some network folders
        say(f"results {path.parent} cannot be locked ({error.strerror}): see to it that no other run writes there")


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
