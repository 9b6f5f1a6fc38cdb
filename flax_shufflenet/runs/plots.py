"""Pictures of runs as PNG: curves, a confusion matrix, calibration, the hardest images. Needs no display and no JAX.

matplotlib is imported where it is used: it takes most of a second, which no start of a run should wait for.
"""

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from jaxtyping import Int, UInt8

from flax_shufflenet.runs.calibration import BINS, Calibration
from flax_shufflenet.runs.run import Run, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter

# It would say that it looks for fonts, which it does once, for seconds, and that it has no folder to keep them in.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

# Okabe and Ito's colours, which the colour-blind tell apart, without their yellow, which white paper swallows.
_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_COLOURS = (_BLUE, _VERMILION, _GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_GREY = "#666666"
_DPI = 130
_MARKED_EPOCHS = 30  # up to so many, each epoch has a dot
_LABEL_GAP = 0.055  # of the axis' height, between two labels at the right
NUMBERED_CLASSES = 20  # up to so many, each cell of a confusion matrix says its number
_NAMED_CLASSES = 200  # up to so many, its rows and columns have names


class Line(NamedTuple):
    """One line of a plot: ``values`` at ``epochs``."""

    label: str
    epochs: Sequence[int]
    values: Sequence[float]
    colour: str
    dashes: str = "-"


class HardImage(NamedTuple):
    """A picture, what it shows, and what the net takes it for with which probability."""

    image: UInt8[np.ndarray, "h w 3"]
    true: str
    predicted: str
    probability: float


def curves(run: Run, title: str) -> bytes:
    """Loss, accuracy and learning rate over the epochs of one run."""
    figure = _figure(13.0, 3.9)
    loss, accuracy, rate = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    _draw(loss, "loss", _lines(run, {"train_loss": "train", "test_loss": "test"}))
    shown = {"train_accuracy": "train", "test_accuracy": "test", "raw_test_accuracy": "not averaged"}
    _draw(accuracy, "accuracy", _lines(run, shown))
    _draw(rate, "learning rate, at the end of the epoch", _lines(run, {"learning_rate": "_"}))
    loss.set_yscale("log")
    _plain_numbers(loss)
    accuracy.yaxis.set_major_formatter(_percent())
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        _label_ends(axes)
    figure.suptitle(_literal(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return _png(figure)


_LINE_COLOURS = {"train": _VERMILION, "test": _BLUE, "not averaged": _GREEN, "_": _BLUE}


def _lines(run: Run, labels: Mapping[str, str]) -> list[Line]:
    lines = [Line(label, *run.series(key), _LINE_COLOURS[label]) for key, label in labels.items()]
    return [line for line in lines if line.epochs]


def comparison(runs: Mapping[str, Run]) -> bytes:
    """Test accuracy and test loss of several runs, by what they are to be called."""
    figure = _figure(13.0, 4.6)
    styles = [(colour, dashes) for dashes in _DASHES for colour in _COLOURS]
    accuracy, loss = figure.subplots(1, 2)
    for axes, key, what in ((accuracy, "test_accuracy", "test accuracy"), (loss, "test_loss", "test loss")):
        lines = []
        for number, (name, run) in enumerate(runs.items()):
            epochs, values = run.series(key)
            if epochs:
                lines.append(Line(name, epochs, values, *styles[number % len(styles)]))
        _draw(axes, what, lines)
    loss.set_yscale("log")
    _plain_numbers(loss)
    accuracy.yaxis.set_major_formatter(_percent())
    for axes in (accuracy, loss):
        _label_ends(axes)
    return _png(figure)


def confusion(counts: Int[np.ndarray, "classes classes"], class_names: Sequence[str], title: str) -> bytes:
    """Rows are the true classes, columns the predicted ones; a row's cells are shares of its images."""
    from matplotlib.colors import PowerNorm

    classes = len(class_names)
    side = 3.2 + (0.55 if classes <= NUMBERED_CLASSES else 0.16) * min(classes, _NAMED_CLASSES)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(side + 0.8, side - 0.4)
    axes = figure.add_subplot()
    # Errors are small shares: a gamma below 1 spreads the colours there.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    size = 9 if classes <= NUMBERED_CLASSES else 6.5
    if classes <= _NAMED_CLASSES:
        names = [_plain(name) for name in class_names]
        axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
    axes.tick_params(length=0)
    if classes <= NUMBERED_CLASSES:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            text = f"{100 * share:.0f}" if share >= 0.01 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if share > 0.4 else "#222222")
    elif classes <= _NAMED_CLASSES:
        axes.set_xticks(np.arange(-0.5, classes), minor=True)
        axes.set_yticks(np.arange(-0.5, classes), minor=True)
        axes.grid(which="minor", color="#eeeeee", linewidth=0.4)
        axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(_literal(title), fontsize=11, loc="left", fontweight="bold")
    bar = figure.colorbar(
        image, ax=axes, shrink=0.5, aspect=30, ticks=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 1), format=_percent()
    )
    bar.set_label("share of the true class's images")
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    return _png(figure)


def reliability(found: Calibration, title: str) -> bytes:
    """A reliability diagram: how often the net is right by how sure it is, and how many images it is so sure of."""
    figure = _figure(5.2, 5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, BINS + 1)
    filled = found.images > 0
    above.bar(
        edges[:-1][filled], found.accuracy[filled], 1 / BINS, align="edge", color=_BLUE, edgecolor="w", label="this net"
    )
    above.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    above.set(ylim=(0, 1), title=f"expected calibration error {percent(found.error)}")
    above.set_ylabel("accuracy", fontsize=9)
    below.bar(edges[:-1], found.images / found.images.sum(), 1 / BINS, align="edge", color=_GREY, edgecolor="w")
    below.set_xlim(0, 1)
    below.set_xlabel("confidence: the probability of the predicted class", fontsize=9)
    below.set_ylabel("share of images", fontsize=9)
    for axes in (above, below):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.xaxis.set_major_formatter(_percent())
        axes.yaxis.set_major_formatter(_percent())
    above.legend(loc="upper left", fontsize=9, frameon=False)
    figure.suptitle(_literal(title), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return _png(figure)


def hardest(images: Sequence[HardImage], title: str) -> bytes:
    """A sheet of pictures, each with the name of its true class above it, and the predicted one below."""
    columns = min(6, max(1, len(images)))
    rows = -(-len(images) // columns)
    figure = _figure(max(5.0, 1.75 * columns), 0.5 + 2.15 * rows)
    for number, one in enumerate(images):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(one.image, interpolation="bicubic")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(f"true: {_plain(one.true)}", fontsize=9, pad=3)
        predicted = f"net: {_plain(one.predicted)}, {_confidence(one.probability)}"
        axes.set_xlabel(predicted, fontsize=9, color=_VERMILION, labelpad=3)
    figure.suptitle(_literal(title), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return _png(figure)


def _literal(name: str) -> str:
    """A name as matplotlib shall write it: between dollars it would look for mathematics, and bytes that are no UTF-8
    are no characters of any font."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def _plain(name: str) -> str:
    """A class, with spaces."""
    return _literal(name.replace("_", " "))


def _confidence(probability: float) -> str:
    """Never 100 %: no probability is."""
    return ">99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


# --- what all of them share


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(wspace=0.06)
    return figure


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name too long for the layout, or a letter that the font does not have
        figure.savefig(buffer, format="png")  # a Figure made without pyplot draws with Agg
    return buffer.getvalue()


def _draw(axes: "Axes", what: str, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in lines:
        marker = "o" if len(line.epochs) <= _MARKED_EPOCHS else ""
        axes.plot(
            line.epochs,
            line.values,
            color=line.colour,
            linestyle=line.dashes,
            marker=marker,
            markersize=3.5,
            linewidth=1.6,
            label=_literal(line.label),
        )
    axes.set_title(what, fontsize=10, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)


def _label_ends(axes: "Axes") -> None:
    """Writes each line's label beside its end; labels that would overlap are moved apart."""
    from matplotlib.patheffects import withStroke

    drawn = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    axes.set_ylim(axes.get_ylim())  # labels shall not move what they point at
    to_height = axes.transData + axes.transAxes.inverted()
    lasts = [np.asarray(line.get_xydata())[-1] for line in drawn]
    for epoch in sorted({last[0] for last in lasts}):
        here = [(line, last) for line, last in zip(drawn, lasts, strict=True) if last[0] == epoch]
        places = spread([float(to_height.transform(last)[1]) for _, last in here], _LABEL_GAP)
        for (line, _), place in zip(here, places, strict=True):
            axes.annotate(
                str(line.get_label()),
                (epoch, place),
                xycoords=axes.get_xaxis_transform(),
                xytext=(8, 0),
                textcoords="offset points",
                color=line.get_color(),
                va="center",
                fontsize=9,
                annotation_clip=False,
                path_effects=[withStroke(linewidth=3, foreground="w")],
            )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The nearest places in the same order, each at least ``gap`` from the next."""
    order = np.argsort(places, kind="stable")
    # Neighbours that are too near become a group around their common middle; groups that then touch are joined.
    groups: list[list[float]] = []
    for place in np.asarray(places, float)[order]:
        groups.append([float(place)])
        while len(groups) > 1 and _top(groups[-2], gap) + gap > _bottom(groups[-1], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [_bottom(group, gap) + gap * number for group in groups for number in range(len(group))]
    return [moved[rank] for rank in np.argsort(order)]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def _plain_numbers(axes: "Axes") -> None:
    """A logarithmic axis with 0.2 and 0.5 rather than powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _percent() -> "FuncFormatter":
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{100 * value:g} %")
