"""A folder of real photographs to train on, with no download: ``python -m benchmarks.photographs FOLDER``.

The two that scikit-learn ships, a temple and a flower, are cut into overlapping tiles, which are written as JPEG files:
``FOLDER/train/CLASS/*.jpg`` of the left two thirds of each, ``FOLDER/test/CLASS/*.jpg`` of the rest, so that no pixel
is in both. The two classes are easy to tell apart: it is a set to try a pipeline with, and no measure of a net.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

_TILE = 192
_TEST_FROM = 440  # the column where the test tiles begin
_STEP, _TEST_STEP = 16, 8


def photographs() -> dict[str, Image.Image]:
    """The two, 640x427 pixels each, by their names."""
    found = load_sample_images()
    return {Path(name).stem: Image.fromarray(image) for name, image in zip(found.filenames, found.images, strict=True)}


def write_folder(folder: Path, *, copies: int = 1, quality: int = 90) -> int:
    """Writes the tiles to ``folder``, each training tile ``copies`` times, and returns how many files that are."""
    written = 0
    for name, photograph in photographs().items():
        for part, start, end, step, count in (
            ("train", 0, _TEST_FROM, _STEP, copies),
            ("test", _TEST_FROM, photograph.width, _TEST_STEP, 1),
        ):
            place = folder / part / name
            place.mkdir(parents=True)
            for top in range(0, photograph.height - _TILE + 1, _STEP):
                for left in range(start, end - _TILE + 1, step):
                    tile = photograph.crop((left, top, left + _TILE, top + _TILE))
                    for copy in range(count):
                        tile.save(place / f"{top:03}_{left:03}_{copy}.jpg", quality=quality)
                        written += 1
    return written


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--copies", type=int, default=1, help="write each training tile so often, for a larger set")
    arguments = parser.parse_args()
    try:
        print(f"{write_folder(arguments.folder, copies=arguments.copies):,} files in {arguments.folder}")
    except OSError as error:
        print(f"photographs: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
