"""A tiny dataset of noise, for tests and for the processes that they start."""

import numpy as np

from flax_shufflenet.datasets.data import Dataset


def random_dataset(train_images):
    """So many training and 10 test images of 8x8 random pixels, 3 classes."""
    rng = np.random.default_rng(1)
    return Dataset(
        name="digits",
        source="random numbers",
        train_images=rng.integers(0, 256, (train_images, 8, 8, 3), dtype=np.uint8),
        train_labels=rng.integers(0, 3, train_images).astype(np.int32),
        test_images=rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8),
        test_labels=rng.integers(0, 3, 10).astype(np.int32),
        class_names=("a", "b", "c"),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        flip=True,
    )
