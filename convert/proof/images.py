"""Real images to compare two nets on."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from convert.errors import ConvertError

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}
_MOST = 512
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def read_images(folder: Path) -> list[np.ndarray]:
    """The images of a folder, in one batch for each size: float64 [N, H, W, 3], ImageNet's normalisation.

    The two nets are compared with each other, so the normalisation need not be the one they were trained with.

    Raises:
        ConvertError: no folder, no image in it, or a damaged one.
    """
    if not folder.is_dir():
        raise ConvertError(f"--images {folder}: no such folder")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)[:_MOST]
    if not paths:
        raise ConvertError(f"--images {folder}: no images in it ({', '.join(sorted(_ENDINGS))})")
    batches: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"), np.float64)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ConvertError(f"--images {path}: cannot be read as an image ({error})") from None
        batches.setdefault(pixels.shape, []).append((pixels / 255 - _MEAN) / _STD)
    return [np.stack(batch) for batch in batches.values()]
