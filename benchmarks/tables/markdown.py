"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_row(heading), "|" + "---|" * len(heading), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def versions(found: Mapping[str, str], names: Sequence[str] = ()) -> str:
    """ "Python 3.11.7, jax 0.10.2"; all of them, or those named that are there."""
    shown = {name: found[name] for name in (names or found) if name in found}
    return ", ".join(f"{'Python' if name == 'python' else name} {number}" for name, number in shown.items())


def file(path: Path) -> str:
    """A file's name from the project's root, as code."""
    return f"`{path.relative_to(ROOT).as_posix()}`"
