"""The rooms of both packages and which knows which, by their imports: ``python -m benchmarks.house PLOT [CHECKOUT]``.

A room is a folder or a module right below the package. Prints how many there are, how many know another, and which two
know each other; draws each above those that it knows. CHECKOUT is another working copy, such as of an earlier commit.
"""

import argparse
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import grimp
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PACKAGES = ("flax_shufflenet", "convert")


class House(NamedTuple):
    """The rooms that each room knows; ``circular`` are the pairs that know each other."""

    known: dict[str, set[str]]
    circular: list[tuple[str, str]]

    @property
    def doors(self) -> int:
        return sum(map(len, self.known.values()))


def survey(package: str) -> House:
    """The rooms of the package that Python would import; it is read, not imported."""
    graph = grimp.build_graph(package)
    known: dict[str, set[str]] = {}
    for module in sorted(graph.modules - {package}):
        rooms = known.setdefault(_room(module), set())
        rooms |= {_room(other) for other in graph.find_modules_directly_imported_by(module) if other != package}
    for room, rooms in known.items():
        rooms.discard(room)
    circular = [(a, b) for a, rooms in known.items() for b in sorted(rooms) if a < b and a in known[b]]
    return House(known, circular)


def _room(module: str) -> str:
    return module.split(".")[1]


def floors(house: House) -> list[list[str]]:
    """The rooms, those that know no other first; one that knows another stands above it, circles aside."""
    below = {room: set(rooms) for room, rooms in house.known.items()}
    for a, b in house.circular:
        below[b].discard(a)
    try:
        order = list(TopologicalSorter(below).static_order())
    except CycleError as error:
        raise ValueError(f"a circle of more than two rooms: {' '.join(error.args[1])}") from None
    floor: dict[str, int] = {}
    for room in order:
        floor[room] = max((floor[other] + 1 for other in below[room]), default=0)
    return [sorted(room for room in order if floor[room] == number) for number in range(max(floor.values()) + 1)]


def draw(axes: Axes, package: str, house: House) -> None:
    places = {
        room: ((number + 0.5) / len(rooms), height)
        for height, rooms in enumerate(floors(house))
        for number, room in enumerate(rooms)
    }
    for room, rooms in house.known.items():
        for other in rooms:
            circular = (room, other) in house.circular or (other, room) in house.circular
            arrow = {"arrowstyle": "->", "color": "tab:red" if circular else "0.75", "lw": 2 if circular else 0.8}
            axes.annotate("", places[other], places[room], arrowprops=arrow)
    for room, place in places.items():
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.3"}
        axes.annotate(room, place, ha="center", va="center", fontsize=8, bbox=box)
    axes.set(title=f"{package}: {len(places)} rooms, {house.doors} doors", xlim=(0, 1))
    axes.set_ylim(-0.5, len(floors(house)) - 0.5)
    axes.set_axis_off()


def plot(houses: Iterable[tuple[str, House]], path: Path) -> None:
    figure = Figure(figsize=(14, 7), layout="constrained")
    houses = list(houses)
    for axes, (package, house) in zip(figure.subplots(1, len(houses)), houses, strict=True):
        draw(axes, package, house)
    figure.savefig(path, dpi=80)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("plot", type=Path, metavar="PLOT", help="the PNG to write")
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).parents[1], metavar="CHECKOUT")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.checkout))
    houses = [(package, survey(package)) for package in PACKAGES]
    for package, house in houses:
        circular = "; ".join(f"{a} and {b} know each other" for a, b in house.circular) or "no circle"
        print(f"{package:16} {len(house.known)} rooms, {house.doors} doors, {circular}")
    plot(houses, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
