"""``flax-shufflenet predict NET IMAGE...``: the classes of images; ``--help`` lists the options."""

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from tyro.conf import Positional, arg

from flax_shufflenet.commands.command_line import run
from flax_shufflenet.errors import OptionError
from flax_shufflenet.images.options import ImageOptions, note
from flax_shufflenet.shipped import nets as shipped_nets
from flax_shufflenet.system.standard_streams import nobody_reads

if TYPE_CHECKING:
    from flax_shufflenet.images.pixel_net import PixelNet
    from flax_shufflenet.images.preprocessing import Preprocessing
    from flax_shufflenet.images.reading import ImageError

# One program is compiled for a run: for the smallest of these batches that holds all images, or for the last.
_BATCHES = (1, 8, 32, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ImageOptions):
    """Says which classes images belong to.

    Class names, normalisation and image size come from the net's file. A net converted from PyTorch has none: what is
    then assumed is said on stderr. Images may be of any kind that Pillow reads; they are turned upright by their EXIF
    data, transparent parts become white, 16 bits a value become 8. Exit codes: 0 done; 2 the command line is wrong; 1
    anything else, also where one of many images or folders cannot be read, which is named on stderr and left out.
    """

    net: Annotated[Positional[Path], arg(metavar="NET")]
    """The net: a file that training, convert or flax_shufflenet.save wrote, or the name of one that comes with the
    package."""

    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...", help_behavior_hint="(required)")]
    """Image files, or folders, whose image files are taken with those of their subfolders, sorted; links are followed,
    and each file counts once."""

    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 3, or all where there are fewer)")] = (
        None
    )
    """Classes to name for each image, the likeliest first."""

    json: bool = False
    """Print one JSON object a line and image."""

    classes: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: as the net's file says)")] = None
    """Text file (UTF-8) with the name of one class a line, in the net's order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise OptionError("name at least one image or folder")
        if self.top_k is not None and self.top_k < 1:
            raise OptionError(f"--top_k must be at least 1, not {self.top_k}")


class Prediction(NamedTuple):
    """An image's likeliest classes, by index, each with its probability from 0 to 1."""

    path: Path
    ranked: list[tuple[int, float]]


def predict(options: Options) -> int:
    """Prints the predictions; returns 1 where an image could not be read, otherwise 0.

    Raises:
        OptionError, OSError, ValueError: nothing can be predicted; the message is one line.
    """
    # Imported here: JAX takes a second that --help and a wrong option need not wait for.
    from flax_shufflenet import fuse
    from flax_shufflenet.images.pixel_net import of_pixels, open_net
    from flax_shufflenet.system.platforms import check_platforms
    from flax_shufflenet.system.user_cache import keep_compiled_programs

    check_platforms()
    keep_compiled_programs()
    class_names = _read_names(options.classes) if options.classes else None
    model, expected = open_net(shipped_nets.find(options.net), options, class_names)
    classes = model.architecture.num_classes
    if not classes:
        raise ValueError(f"{options.net}: a backbone, which has no classes")
    if options.top_k is not None and options.top_k > classes:
        raise OptionError(f"--top_k must be at most {classes}, the classes of {options.net}, not {options.top_k}")
    paths, unreadable = _files(options.images)
    note(expected.assumed, options)
    for error in unreadable:
        _say(error)

    net = of_pixels(fuse(model), expected)
    predictions = _predictions(net, expected, paths, options.top_k or min(3, classes), unreadable)
    if not options.json and sys.stdout.isatty():
        _print_table(predictions, len(paths), expected.class_names)
    else:
        to_text = _json if options.json else _line
        for prediction in predictions:
            print(to_text(prediction, expected.class_names))
            if nobody_reads():
                break
    return 1 if unreadable else 0


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        # Notepad and Excel begin a UTF-8 file with a byte-order mark, which is no part of the first name.
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise OptionError(f"--classes {path} cannot be read ({reason})") from None


def _files(images: Sequence[Path]) -> "tuple[list[Path], list[ImageError]]":
    """The image files that are named, and those in the folders that are; and what folders cannot be read."""
    from flax_shufflenet.images.reading import ENDINGS, find

    paths, unreadable = [], []
    for path in images:
        if not path.is_dir():
            paths.append(path)
            continue
        found = find(path)
        if not (found.paths or found.unreadable):
            raise ValueError(f"{path}: no images in it ({' '.join(ENDINGS)})")
        paths += found.paths
        unreadable += found.unreadable
    return paths, unreadable


def _say(error: "ImageError") -> None:
    print(f"predict: {error}", file=sys.stderr)


def _predictions(
    net: "PixelNet", expected: "Preprocessing", paths: Sequence[Path], top_k: int, unreadable: "list[ImageError]"
) -> Iterator[Prediction]:
    """Predictions in the order of ``paths``; names the files that cannot be read on stderr and adds them to
    ``unreadable``."""
    import jax
    from PIL.Image import DecompressionBombWarning

    from flax_shufflenet.images.reading import ImageError, batches, in_threads, read_as
    from flax_shufflenet.inference import batch_options

    warnings.simplefilter("ignore", DecompressionBombWarning)  # a large photograph; twice as large is an error

    batch_size = next((size for size in _BATCHES if size >= len(paths)), _BATCHES[-1])
    run_net = jax.jit(net, compiler_options=batch_options())
    decoded = in_threads(lambda path: read_as(path, expected.fit), paths, ahead=2 * batch_size)
    for batch in batches(paths, batch_size):
        pixels = np.zeros((batch_size, expected.size, expected.size, 3), np.uint8)
        readable = []
        for path in batch:
            image = next(decoded)
            if isinstance(image, ImageError):
                _say(image)
                unreadable.append(image)
            else:
                pixels[len(readable)] = image
                readable.append(path)
        if readable:
            probabilities = _softmax(np.asarray(run_net(pixels), np.float64))
            for path, row in zip(readable, probabilities, strict=False):
                ranked = np.argsort(-row, kind="stable")[:top_k]
                yield Prediction(path, [(int(index), float(row[index])) for index in ranked])


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _printable(text: str | Path) -> str:
    """A name as one field of one line, whatever characters, or bytes in a path, are in it."""
    if isinstance(text, Path):
        text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _json(prediction: Prediction, names: Sequence[str]) -> str:
    ranked = [{"class": names[index], "index": index, "probability": share} for index, share in prediction.ranked]
    return json.dumps({"image": str(prediction.path), "predictions": ranked})


def _line(prediction: Prediction, names: Sequence[str]) -> str:
    ranked = [f"{_printable(names[index])}\t{share:.4f}" for index, share in prediction.ranked]
    return "\t".join([_printable(prediction.path), *ranked])


def _print_table(predictions: Iterator[Prediction], count: int, names: Sequence[str]) -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "class", "then", box=None)
    watched = track(predictions, "predicting", count, console=Console(stderr=True), transient=True)
    for prediction in watched:
        label, *others = [f"{_printable(names[index])} {share:.1%}" for index, share in prediction.ranked]
        table.add_row(Text(_printable(prediction.path)), Text(label, "bold"), Text(", ".join(others), "dim"))
    Console().print(table)


def main() -> int:
    return run("flax-shufflenet predict", Options, predict)
