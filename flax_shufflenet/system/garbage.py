"""When Python looks for garbage in a command that imports JAX or PyTorch: they make a million objects that stay."""

import atexit
import gc


def collect_rarely() -> None:
    """At each 100,000 new objects instead of 700, where it takes a second of a conversion's six; and not while the
    process ends, where Python does it several times, which takes another."""
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
