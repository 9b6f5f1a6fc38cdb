"""How many images a net still gets right when they are mirrored, or shifted by a few pixels."""

from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from flax_shufflenet.images.pixel_net import PixelNet, with_mirror_images
from flax_shufflenet.inference import batch_options

SHIFTS = (2, 4)
"""Pixels. Beyond an image's edge it is black, as in the published recipe's random shifts of training images."""

SMALLEST_SHIFTED = 16  # pixels; of smaller images a shift loses more than the quarter that these lose


class View(NamedTuple):
    """An image mirrored left to right, or not, and then moved so many pixels."""

    mirrored: bool = False
    down: int = 0
    right: int = 0


class Change(NamedTuple):
    """What is done to the images, in words, and the views whose mean accuracy tells how much it costs."""

    words: str
    views: tuple[View, ...]


def _shifts(pixels: int) -> Change:
    ways = ((-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels))
    return Change(f"shifted by {pixels} pixels", tuple(View(down=down, right=right) for down, right in ways))


CHANGES = {"flip": Change("mirrored left to right", (View(mirrored=True),))} | {
    f"shift_{pixels}": _shifts(pixels) for pixels in SHIFTS
}


def as_seen(images: UInt8[Array, "n h w 3"], view: View) -> UInt8[Array, "n h w 3"]:
    """The images in this view, whose numbers may be traced: one program then serves all views.

    They are moved by no more pixels than the largest of ``SHIFTS``.
    """
    edge = max(SHIFTS)
    padded = jnp.pad(jnp.where(view.mirrored, images[:, :, ::-1], images), ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return jax.lax.dynamic_slice(padded, (0, edge - view.down, edge - view.right, 0), images.shape)


class Robustness:
    """Counts, a batch at a time, what a net gets right of images of ``size`` x ``size`` that are changed.

    ``test_flip`` takes the mean of the scores of each image and its mirror image. ``why_no_flip`` says why a mirrored
    image might be of another class; empty where it is not. All batches are of one length.
    """

    def __init__(self, net: PixelNet, size: int, *, test_flip: bool, why_no_flip: str = "") -> None:
        net = with_mirror_images(net) if test_flip else net
        if test_flip and not why_no_flip:
            why_no_flip = "the net's scores are the mean of both already (--test_flip)"
        self.changes = dict(CHANGES)
        self.notes: list[str] = []
        """For people: how the images are shifted, and what is not done to them, and why."""
        if why_no_flip:
            flip = self.changes.pop("flip")
            self.notes.append(f"not {flip.words}: {why_no_flip}")
        if size >= SMALLEST_SHIFTED:
            self.notes.append("shifted: the mean of up, down, left and right, black beyond the edge")
        else:
            self.changes = {name: change for name, change in self.changes.items() if name == "flip"}
            self.notes.append(f"not shifted: images of {size}x{size} pixels would lose too much")
        self._classes = jax.jit(
            lambda images, view: net(as_seen(images, view)).argmax(axis=1), compiler_options=batch_options()
        )
        self._right = Counter[View]()
        self._images = 0

    def add(self, images: UInt8[np.ndarray, "n h w 3"], labels: Int[np.ndarray, " labelled"]) -> None:
        """Further images with the labels of the first of them; others fill a batch up, and do not count."""
        self._images += len(labels)
        on_device = jax.device_put(images)
        for view in (view for change in self.changes.values() for view in change.views):
            classes = np.asarray(self._classes(on_device, view))[: len(labels)]
            self._right[view] += int(np.sum(classes == labels))

    @property
    def accuracies(self) -> dict[str, float]:
        """By the names in ``changes``; the mean over a change's views."""
        return {
            name: sum(self._right[view] for view in change.views) / (len(change.views) * self._images)
            for name, change in self.changes.items()
        }
