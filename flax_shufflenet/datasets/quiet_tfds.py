"""TensorFlow Datasets, without what it says beside its work."""

import contextlib
import sys
from collections.abc import Generator

import tensorflow_datasets as tfds
from absl import logging


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Without TFDS's advice to install OpenCV, and without progress bars where nobody watches."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
