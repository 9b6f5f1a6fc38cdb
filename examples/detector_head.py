"""A small detector head on the feature maps of a net's stages: where in the image is the square?

    python examples/detector_head.py

The backbone is the net for CIFAR-10 that comes with the package, frozen. Needs ``pip install -e '.[train]'``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import flax_shufflenet as fs


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square somewhere, [N, 32, 32, 3]; and which of 8x8 cells the square's centre is in."""
    random = np.random.default_rng(seed)
    images = random.normal(0, 0.3, (count, 32, 32, 3)).astype(np.float32)
    corners = random.integers(0, 26, (count, 2))
    for image, (y, x) in zip(images, corners, strict=True):
        image[y : y + 6, x : x + 6] += 2
    return images, (corners + 3) // 4 @ [8, 1]


class Head(nnx.Module):
    """The maps of two stages brought to one width, the coarser one enlarged, and added up: a score for each cell."""

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.laterals = nnx.List([nnx.Conv(width, 32, (1, 1), rngs=rngs) for width in widths])
        self.score = nnx.Conv(32, 1, (3, 3), rngs=rngs)

    def __call__(self, maps: list[jax.Array]) -> jax.Array:
        fine, coarse = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        x = nnx.relu(fine + jax.image.resize(coarse, fine.shape, "nearest"))
        return self.score(x).reshape(len(x), -1)


@nnx.jit
def step(head: Head, optimizer: nnx.Optimizer, maps: list[jax.Array], cells: jax.Array) -> None:
    def loss(head: Head) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(head(maps), cells).mean()

    optimizer.update(head, nnx.grad(loss)(head))


def main() -> None:
    model = fs.pretrained("shufflenet_0.5_cifar10")
    # [N, 16, 16, 48], [N, 8, 8, 96] and [N, 4, 4, 192]; the last two have strides 4 and 8.
    maps_of = nnx.jit(lambda model, images: model.stage_features(images)[1:])
    head = Head(model.architecture.stage_widths[1:], rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(head, optax.adam(1e-2), wrt=nnx.Param)

    images, cells = make_images(256, seed=0)
    maps = maps_of(model, images)  # the backbone is frozen: its maps are computed once
    for _ in range(50):
        step(head, optimizer, maps, jnp.asarray(cells))

    images, cells = make_images(256, seed=1)
    found = np.asarray(head(maps_of(model, images)).argmax(axis=1))
    print(f"the right one of 64 cells in {np.mean(found == cells):.1%} of 256 new images")


if __name__ == "__main__":
    main()
