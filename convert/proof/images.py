"""Real images to compare two nets on."""

from pathlib import Path

import numpy as np

from convert.errors import ConvertError
from flax_shufflenet.images import reading

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}
_MOST = 512
_LONGEST_SIDE = 512
_MOST_PIXELS = 500_000
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def read_images(folder: Path) -> list[np.ndarray]:
    """The images of a folder, in one batch for each size: float64 [N, H, W, 3], ImageNet's normalisation.

    The two nets are compared with each other, so the normalisation need not be the one they were trained with. The maps
    of all their layers are kept, so large images are shrunk, and only so many are read.

    Raises:
        ConvertError: no folder, no image in it, or a damaged one.
    """
    if not folder.is_dir():
        raise ConvertError(f"--images {folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)[:_MOST]
    if not paths:
        raise ConvertError(f"--images {folder}: no images in it ({', '.join(sorted(_ENDINGS))})")
    batches: dict[tuple[int, ...], list[np.ndarray]] = {}
    pixels = 0
    for path in paths:
        try:
            image = reading.read(path)
        except reading.ImageError as error:
            raise ConvertError(f"--images {error}") from None
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        pixels += image.width * image.height
        if batches and pixels > _MOST_PIXELS:
            break
        values = np.asarray(image, np.float64)
        batches.setdefault(values.shape, []).append((values / 255 - _MEAN) / _STD)
    return [np.stack(batch) for batch in batches.values()]
