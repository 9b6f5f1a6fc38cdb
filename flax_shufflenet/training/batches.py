"""The batches that a run's steps see: picked, augmented and normalised, on the device.

Which images a step sees, and how they are augmented, follows from the seed and the step's number alone.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Int32, UInt8

from flax_shufflenet.datasets.streamed import AnyDataset
from flax_shufflenet.images.normalisation import normalise
from flax_shufflenet.training import devices
from flax_shufflenet.training.augmentation import augment, erase
from flax_shufflenet.training.config import Config, PaddingMode
from flax_shufflenet.training.random_streams import Stream, step_key


def as_rows(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n pixels"]:
    """How images lie on the device. Of images whose last axis is 3, XLA for TPUs copies all into another layout at
    every step, before it picks a batch."""
    return images.reshape(len(images), -1)


class Batches(NamedTuple):
    """What batches follow from, beside the images. ``train_images`` is their number; ``cropped`` says that they come
    cropped and mirrored; ``mean`` and ``std`` are of pixel values from 0 to 1, ``bgr`` puts blue first."""

    seed: int
    batch_size: int
    train_images: int
    image_shape: tuple[int, int, int]
    cropped: bool
    flip: bool
    crop_padding: int
    crop_padding_mode: PaddingMode
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    random_erasing: float

    @classmethod
    def of(cls, config: Config, dataset: AnyDataset) -> "Batches":
        """Those of a run."""
        return cls(
            seed=config.seed,
            batch_size=config.batch_size,
            train_images=len(dataset.train_labels),
            image_shape=dataset.image_shape,
            cropped=dataset.short_side is not None,
            flip=dataset.flip,
            crop_padding=config.crop_padding,
            crop_padding_mode=config.crop_padding_mode,
            mean=dataset.mean,
            std=dataset.std,
            bgr=dataset.bgr,
            random_erasing=config.random_erasing,
        )

    def pick(
        self,
        step: int | Int32[Array, ""],
        images: UInt8[Array, "train ..."],
        labels: Int32[Array, " train"],
        order: Int32[Array, " train"],
    ) -> tuple[Float32[Array, "n h w 3"], Int32[Array, " n"]]:
        """The images of step ``step``, counted from 0, as the net sees them, and their labels.

        ``images`` and ``labels`` are the whole training set, ``order`` is the ``epoch_order`` of the step's epoch. An
        image is [h, w, 3], or all of it in one axis.
        """
        indices = self.indices(step, order)
        return self.prepare(step, images[indices].reshape(-1, *self.image_shape), labels[indices])

    def indices(self, step: int | Int32[Array, ""], order: Int32[Array, " train"]) -> Int32[Array, " n"]:
        """Of the images of step ``step``, as ``pick`` takes them."""
        start = step % (self.train_images // self.batch_size) * self.batch_size
        return devices.own_part(jax.lax.dynamic_slice(order, (start,), (self.batch_size,)))

    def prepare(
        self, step: int | Int32[Array, ""], images: UInt8[Array, "n h w 3"], labels: Int32[Array, " n"]
    ) -> tuple[Float32[Array, "n h w 3"], Int32[Array, " n"]]:
        """The same, where ``images`` and ``labels`` are those of the step's batch."""
        if not self.cropped:
            images = augment(
                step_key(self.seed, Stream.AUGMENTATION, step),
                images,
                flip=self.flip,
                padding=self.crop_padding,
                padding_mode=self.crop_padding_mode,
            )
        batch = normalise(images, self.mean, self.std, bgr=self.bgr)
        if self.random_erasing:
            batch = erase(step_key(self.seed, Stream.ERASING, step), batch, probability=self.random_erasing)
        return batch, labels
