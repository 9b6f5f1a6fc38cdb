"""What becomes of exceptions that Python cannot pass on: this is the one place that sets ``sys.unraisablehook``.

Python drops what is raised while it collects garbage, where JAX has a callback, or deletes an object: it prints
"Exception ignored" and goes on (https://docs.python.org/3/library/sys.html#sys.unraisablehook).
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

# Takes what the hook takes, and returns whether nothing more is to be done about it.
Handler = Callable[[Any], bool]

_handlers: list[Handler] = []


def add_handler(handler: Handler) -> None:
    """From now on ``handler`` is asked first; what no handler takes is told as before."""
    _set_hook()
    _handlers.append(handler)


def remove_handler(handler: Handler) -> None:
    """It is not asked any more, others still are."""
    _handlers.remove(handler)


@functools.cache
def _set_hook() -> None:
    before = sys.unraisablehook

    def ask_handlers(dropped: "sys.UnraisableHookArgs") -> None:
        if not any(handler(dropped) for handler in reversed(_handlers)):
            before(dropped)

    sys.unraisablehook = ask_handlers
