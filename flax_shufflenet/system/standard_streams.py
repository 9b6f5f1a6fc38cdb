"""Standard output and error as commands need them: what is written there cannot keep a command from its work."""

import contextlib
import io
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO

from flax_shufflenet.system.files import named_in_errors

_NAMES = {1: "stdout", 2: "stderr"}


@contextlib.contextmanager
def lasting() -> Generator[None]:
    """Within it, what is printed is lost where nobody reads it any more, as behind ``head``, or ever did (``>&-``),
    and characters that the terminal's encoding lacks are written as ``\\xe4`` or ``\\u2713``.

    Streams that a caller has put in the place of the process's own stay as they are.
    """
    before = {name: getattr(sys, name) for name in _NAMES.values()}
    ours = []
    for descriptor, name in _NAMES.items():
        if before[name] is getattr(sys, f"__{name}__"):  # both are None where it is closed
            ours.append(_lasting_stream(descriptor, before[name]))
            setattr(sys, name, ours[-1])
    try:
        yield
    finally:
        for stream in ours:
            try:
                stream.flush()
            except OSError:  # it has been said, where that is possible: the interpreter's exit shall not try again
                _open_nowhere(stream.fileno())
        for name, stream in before.items():
            setattr(sys, name, stream)


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "reader_has_gone", False)


class _Descriptor(io.FileIO):
    """A descriptor that loses what is written to it once nobody reads it."""

    reader_has_gone = False

    def write(self, data: Any, /) -> int | None:
        try:
            with named_in_errors("standard output" if self.fileno() == 1 else "standard error"):
                return super().write(data)
        except BrokenPipeError:
            self.reader_has_gone = True
            return len(data)


def _lasting_stream(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is None:
        _open_nowhere(descriptor)
    else:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _open_nowhere(descriptor: int) -> None:
    # Otherwise the next file that is opened would get this number, and what libraries in C print.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
