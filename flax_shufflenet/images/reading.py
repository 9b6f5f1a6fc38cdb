"""Image files of any kind as pixels: found, decoded by several threads, brought to one size."""

import collections
import contextlib
import heapq
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from flax_shufflenet.system import cpus

# Of the files in a folder, those with such a name; a file that is named itself is tried whatever its name. They are
# Pillow's own, but for videos, what it reads with another program's help, and numbers of no known range.
# fmt: off
ENDINGS = (
    ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".ftc", ".ftu",
    ".gbr", ".gif", ".icb", ".icns", ".ico",
    ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp",
    ".pbm", ".pcd", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi",
    ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
)
# fmt: on

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageError(ValueError):
    """A file cannot be read as an image; the message is one line that names it."""


class EncodedImage(io.BytesIO):
    """An image file's bytes, where it lies in a larger file; ``name`` is what errors call it."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:  # Pillow has it in its messages
        return repr(self.name)


ImageFile = Path | EncodedImage


class Found(NamedTuple):
    """Image files, sorted by path; where each of them really lies; and the folders that cannot be read."""

    paths: list[Path]
    real_paths: list[str]
    unreadable: list[ImageError]


def find(folder: Path) -> Found:
    """The image files below a folder; hidden files and folders are passed over.

    Links are followed, but for those to a folder that they lie in, and each real file counts once: by its name with the
    fewest links on its way, the first in order of several.
    """
    waiting = [(0, folder)]
    visited: set[tuple[int, int]] = set()
    candidates: list[tuple[int, Path, str]] = []
    unreadable: list[ImageError] = []
    while waiting:
        links, parent = heapq.heappop(waiting)
        try:
            status = parent.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            unreadable.append(ImageError(f"{parent}: this folder cannot be read ({error.strerror})"))
            continue
        real_parent = os.path.realpath(parent)
        for entry in entries:
            path, is_link = Path(entry.path), entry.is_symlink()
            if _is_folder(entry):
                if not (is_link and leads_back(path)):
                    heapq.heappush(waiting, (links + is_link, path))
            elif _is_image_name(entry.name):
                real = os.path.realpath(path) if is_link else os.path.join(real_parent, entry.name)
                candidates.append((links + is_link, path, real))
    path_of: dict[str, Path] = {}
    for _, path, real in sorted(candidates):
        path_of.setdefault(real, path)
    found = sorted((path, real) for real, path in path_of.items())
    return Found([path for path, _ in found], [real for _, real in found], unreadable)


def leads_back(link: Path) -> bool:
    """Whether a link leads to a folder that it lies in, at whatever depth, so that it runs in a circle."""
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(link.parent)]) == target


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except PermissionError:  # a link to where one may not look: reading it as a folder then says so
        return not _is_image_name(entry.name)
    except OSError:  # a link to itself
        return False


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def read(file: ImageFile) -> Image.Image:
    """The image in a file, as people see it: mode RGB, turned upright as its EXIF data says, transparent parts on
    white, 16 bits a value scaled to 8; the first picture where there are several.

    Raises:
        ImageError: no such file, no image, a damaged one, or one of numbers whose range is unknown.
    """
    with opened(file) as image:
        return upright(image)


@contextlib.contextmanager
def opened(file: ImageFile) -> Generator[Image.Image]:
    """The image in a file, of which only the header is read yet; errors of what is done with it inside name the file.

    Raises:
        ImageError: no such file, no image, or a damaged one.
    """
    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise ImageError(f"{file}: no such file") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError ...
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()).replace(f" {str(file)!r}", "")
        raise ImageError(f"{file}: cannot be read as an image ({reason or type(error).__name__})") from None


def read_as(file: ImageFile, fit: Callable[[Image.Image], Result]) -> Result | ImageError:
    """What ``fit`` makes of the image in a file; where that cannot be read, the error, so that the others go on."""
    try:
        return fit(read(file))
    except ImageError as error:
        return error


def upright(image: Image.Image) -> Image.Image:
    """What ``read`` makes of an opened image, which is changed.

    Raises:
        ValueError: its numbers have an unknown range.
    """
    # Neither of the two makes a copy of an image that is as it should be.
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its values are floats, whose range is unknown; save it with 8 or 16 bits a value")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError("its values do not fit 16 bits; save it with 8 or 16 bits a value")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def stretched(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The whole image as a square, its sides stretched or shrunk as need be."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def centre_crop(image: Image.Image, size: int, short_side: int) -> UInt8[np.ndarray, "size size 3"]:
    """The square in the middle of the image, once the image's short side has been brought to ``short_side``: what
    torchvision's ``Resize`` and ``CenterCrop`` do."""
    width, height = image.size
    # Resized sides are whole numbers, so a scale is not quite the same in both directions.
    scaled = [int(short_side * side / min(width, height)) for side in image.size]
    starts = [round((side - size) / 2) for side in scaled]
    ratios = [side / whole for side, whole in zip(image.size, scaled, strict=True)]
    left, top = (start * ratio for start, ratio in zip(starts, ratios, strict=True))
    right, bottom = ((start + size) * ratio for start, ratio in zip(starts, ratios, strict=True))
    # Only what is kept is computed: the long side of a narrow strip may be a million pixels.
    box = (left, top, min(right, width), min(bottom, height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
    """``work`` of each item, in order, by as many threads as there are CPUs and at most ``ahead`` items early.

    Pillow decodes and resizes without Python's lock.
    """
    with ThreadPoolExecutor(cpus.available()) as pool:
        pending: collections.deque[Future[Result]] = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in order, ``size`` at a time; the last batch may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
