"""Ctrl-C and SIGTERM: the first one ends a run at its next step, a second one at once, and none is lost."""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

from flax_shufflenet.system.dropped_exceptions import add_handler, remove_handler

_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; the message says where it stands, and ``exit_code`` is 128 and the signal's number."""

    def __init__(self, signal_number: int, message: str = "interrupted, nothing new to save") -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def handle_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Sets what Ctrl-C and SIGTERM do. A Ctrl-C that the process was told to ignore, as shells tell their background
    jobs, is still ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def lost_interrupts_come_again() -> Generator[None]:
    """Within it, a ``KeyboardInterrupt`` that Python could not pass on arrives a moment later."""

    def interrupt_again(dropped: "sys.UnraisableHookArgs") -> bool:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            return False
        number = getattr(dropped.exc_value, "signal_number", signal.SIGINT)
        # Later: what is raised here, still where it was dropped, would be dropped as well.
        again = threading.Timer(0.1, _thread.interrupt_main, (number,))
        again.daemon = True
        again.start()
        return True

    add_handler(interrupt_again)
    try:
        yield
    finally:
        remove_handler(interrupt_again)


def raise_on_signals() -> list[int]:
    """From now on Ctrl-C and SIGTERM raise ``Interrupted``. Returns a list that gets the numbers of those that came."""
    came: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise Interrupted(number)

    handle_signals(handle)
    return came


class Interruption:
    """While it is entered, Ctrl-C and SIGTERM only set ``signal_number``: whoever looks at it decides when to stop.

    After the first one, both do again what they do to any program: they end it at once. An ignored Ctrl-C stays
    ignored. Outside the main thread, where Python allows no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        if sys.stdout.isatty():
            # Not through a stream, which may be in the middle of writing. A progress bar has hidden the cursor, and
            # would not show it again after the second signal.
            os.write(sys.stdout.fileno(), _SHOW_CURSOR)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
