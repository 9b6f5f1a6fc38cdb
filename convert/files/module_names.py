"""The names of what is in modules, of which a few bytes of a file can make endlessly many and endlessly long ones: a
module may stand in many places, and in itself."""

from collections.abc import Iterator, Mapping
from typing import Any

from convert.errors import ConvertError

_MAX_MODULES = 10_000
_MAX_NAMES = 50_000
_MAX_LEVELS = 64
_LONGEST = 1_000


class Names:
    """Those of one file, counted."""

    def __init__(self) -> None:
        self._modules = self._names = 0

    def enter(self, prefix: str) -> None:
        """Counts a module; ``prefix`` is its own name and a dot.

        Raises:
            ConvertError: one module is in itself, or there are more than any file has.
        """
        self._modules += 1
        if self._modules > _MAX_MODULES or prefix.count(".") > _MAX_LEVELS:
            raise ConvertError(
                f"more than {_MAX_MODULES:,} modules in each other, or one that is in itself; this is no ShuffleNetV2"
            )

    def of(self, prefix: str, items: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
        """The name after the prefix, and the value, of each item that has one.

        Raises:
            ConvertError: more names, or a longer one, than any file has.
        """
        self._names += len(items)
        if self._names > _MAX_NAMES:
            raise ConvertError(f"more than {_MAX_NAMES:,} names in its modules; this is no ShuffleNetV2")
        for own, value in items.items():
            if isinstance(own, str):
                if len(prefix) + len(own) > _LONGEST:
                    raise ConvertError(f"a name of more than {_LONGEST:,} characters in its modules, which no net has")
                yield f"{prefix}{own}", value
