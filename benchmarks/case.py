"""What is measured: one contender at one piece of work, with the same weights, images and labels for all."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

Task = Literal["train", "infer"]
Step = Callable[[], Any]
"""One piece of work, done when it returns; for the nets what it returns is the loss or the class scores."""
Program = Callable[[], list[Step]]
"""Compiles (or loads) what a contender then runs: one step, or for the floor one for each matrix product."""

IMAGE_SIDE = 32
CLASSES = 10
# Of SGD in every train step. A small rate keeps a long run on one random batch finite.
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work; ``folder`` holds the net's weights in the forms that ``nets.write`` gives them."""

    task: Task
    size: float
    batch: int
    folder: Path

    @property
    def torch_weights(self) -> Path:
        return self.folder / f"{self.task}_{self.size}.pt"

    @property
    def flax_weights(self) -> Path:
        return self.folder / f"{self.task}_{self.size}.safetensors"

    @property
    def onnx_net(self) -> Path:
        return self.folder / f"{self.size}_{self.batch}.onnx"

    def images(self) -> np.ndarray:
        """[N, H, W, 3]"""
        shape = (self.batch, IMAGE_SIDE, IMAGE_SIDE, 3)
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def images_nchw(self) -> np.ndarray:
        """The same images, as PyTorch and ONNX have them."""
        return np.ascontiguousarray(self.images().transpose(0, 3, 1, 2))

    def labels(self) -> np.ndarray:
        return np.random.default_rng(1).integers(0, CLASSES, self.batch, np.int32)

    def __str__(self) -> str:
        work = "train step" if self.task == "train" else "forward"
        return f"{work}, size {self.size}, batch {self.batch}"
