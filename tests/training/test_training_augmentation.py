"""Crops, flips, erasing and normalisation against a plain NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_shufflenet.images.normalisation import normalise
from flax_shufflenet.training import augmentation
from flax_shufflenet.training.config import PaddingMode

# As a step has them: one by one, their operations would each be compiled.
augment = jax.jit(augmentation.augment, static_argnames=("flip", "padding", "padding_mode"))
BLACK = {"flip": True, "padding": 4, "padding_mode": "constant"}
erase = jax.jit(augmentation.erase, static_argnames="probability")


def images(count, height=32, width=32):
    # No zeros: black pixels can then come from the padding alone.
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def candidates(image, flip, padding=4, padding_mode: PaddingMode = "constant"):
    """Every result that torchvision's RandomCrop, then RandomHorizontalFlip, can give: {bytes: choice}."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), padding_mode)
    results = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            results[crop.tobytes()] = (top, left, False)
            if flip:
                results[crop[:, ::-1].tobytes()] = (top, left, True)
    return results


@pytest.mark.parametrize(
    ("flip", "padding", "padding_mode"),
    [(True, 4, "constant"), (False, 4, "constant"), (True, 2, "reflect"), (False, 0, "reflect")],
)
def test_every_image_is_one_of_the_references_and_every_choice_occurs(flip, padding, padding_mode):
    image = images(1, 9, 11)
    count, shifts = 4000, 2 * padding + 1
    repeated = jnp.repeat(image, count, axis=0)
    augmented = np.asarray(augment(jax.random.key(0), repeated, flip=flip, padding=padding, padding_mode=padding_mode))
    assert augmented.dtype == np.uint8
    reference = candidates(image[0], flip, padding, padding_mode)
    choices = np.array([reference[result.tobytes()] for result in augmented])  # a KeyError is a wrong image
    for axis in (0, 1):
        frequencies = np.bincount(choices[:, axis], minlength=shifts) / count
        deviation = np.sqrt((1 - 1 / shifts) / shifts / count)
        np.testing.assert_allclose(frequencies, 1 / shifts, atol=5 * deviation)
    np.testing.assert_allclose(choices[:, 2].mean(), 0.5 if flip else 0, atol=0.04)
    # Rows, columns and flips are drawn independently.
    assert len(np.unique(choices, axis=0)) == shifts**2 * (2 if flip else 1)


def test_images_of_a_batch_are_augmented_separately_and_stay_in_order():
    batch = images(200)
    augmented = np.asarray(augment(jax.random.key(1), jnp.asarray(batch), **BLACK))
    pairs = zip(batch[:64], augmented[:64], strict=True)
    choices = [candidates(image, flip=True)[result.tobytes()] for image, result in pairs]
    assert len(set(choices)) > 30


def test_the_key_decides():
    batch = jnp.asarray(images(200))
    first, again, other = (np.asarray(augment(jax.random.key(seed), batch, **BLACK)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_padding_is_black_before_normalisation():
    white = jnp.full((200, 32, 32, 3), 255, jnp.uint8)
    augmented = np.asarray(augment(jax.random.key(0), white, **BLACK))
    assert set(np.unique(augmented)) == {0, 255}
    border = np.ones((32, 32), bool)
    border[4:-4, 4:-4] = False
    assert (augmented[:, ~border] == 255).all()


def test_normalisation_is_torchvisions():
    batch = images(4)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = (batch / 255 - np.array(mean)) / np.array(std)
    result = normalise(jnp.asarray(batch), mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


def rectangles(erased):
    """Of images that were all ones: whether each one has zeros, and top, left, height and width of those.

    An image whose zeros are no rectangle, or not in all its colours, fails the test.
    """
    found = []
    for image in np.asarray(erased):
        rows, columns = np.nonzero((image == 0).all(-1))
        if not rows.size:
            assert (image == 1).all()
            found.append((False, 0, 0, 0, 0))
            continue
        top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        expected = np.ones_like(image)
        expected[top:bottom, left:right] = 0
        np.testing.assert_array_equal(image, expected)
        found.append((True, top, left, bottom - top, right - left))
    return np.array(found).T


def test_erased_are_rectangles_of_torchvisions_areas_and_ratios():
    count = 4000
    chosen, top, left, heights, widths = rectangles(
        erase(jax.random.key(0), jnp.ones((count, 32, 32, 3)), probability=0.6)
    )
    np.testing.assert_allclose(chosen.mean(), 0.6, atol=0.04)  # 5 standard deviations
    top, left, heights, widths = (values[chosen == 1] for values in (top, left, heights, widths))
    # Sides are rounded, so that each bound holds up to half a pixel on either side.
    assert ((heights - 0.5) * (widths - 0.5) <= 0.33 * 1024).all()
    assert ((heights + 0.5) * (widths + 0.5) >= 0.02 * 1024).all()
    for longer, shorter in ((heights, widths), (widths, heights)):
        assert ((longer - 0.5) / (shorter + 0.5) <= 3.3334).all()
    assert max(heights.max(), widths.max()) == 31
    # Areas and logarithms of ratios are uniform: their quartiles say so.
    areas, logs = heights * widths / 1024, np.log(heights / widths)
    np.testing.assert_allclose(
        np.quantile(areas, [0.25, 0.5, 0.75]), 0.02 + 0.31 * np.array([0.25, 0.5, 0.75]), atol=0.02
    )
    np.testing.assert_allclose(np.quantile(logs, [0.25, 0.5, 0.75]), np.log(3.3) * np.array([-0.5, 0, 0.5]), atol=0.1)
    # So is the place, from one edge to the other.
    for start, size in ((top, heights), (left, widths)):
        share = start / (32 - size)
        assert (share.min(), share.max()) == (0, 1)
        np.testing.assert_allclose(share.mean(), 0.5, atol=0.05)


def test_what_is_erased_follows_from_the_key():
    batch = jnp.ones((32, 16, 12, 3))
    first, again, other = (np.asarray(erase(jax.random.key(seed), batch, probability=1.0)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (rectangles(first)[0] == 1).all()


def test_an_image_that_no_rectangle_fits_into_stays_whole():
    batch = jnp.ones((8, 1, 1, 3))
    np.testing.assert_array_equal(erase(jax.random.key(0), batch, probability=1.0), batch)
