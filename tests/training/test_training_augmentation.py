"""Crops, flips and normalisation against a plain NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_shufflenet.training.augmentation import PADDING, augment, normalise


def images(count, height=32, width=32):
    # No zeros: black pixels can then come from the padding alone.
    return np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)


def candidates(image, flip):
    """Every result that torchvision's RandomCrop(padding=4), then RandomHorizontalFlip, can give: {bytes: choice}."""
    height, width, _ = image.shape
    padded = np.zeros((height + 8, width + 8, 3), np.uint8)
    padded[4 : 4 + height, 4 : 4 + width] = image
    results = {}
    for top in range(9):
        for left in range(9):
            crop = padded[top : top + height, left : left + width]
            results[crop.tobytes()] = (top, left, False)
            if flip:
                results[crop[:, ::-1].tobytes()] = (top, left, True)
    return results


@pytest.mark.parametrize("flip", [True, False])
def test_every_image_is_one_of_the_references_and_every_choice_occurs(flip):
    image = images(1, 9, 11)
    count = 4000
    augmented = np.asarray(augment(jax.random.key(0), jnp.repeat(image, count, axis=0), flip=flip))
    assert augmented.dtype == np.uint8
    reference = candidates(image[0], flip)
    choices = np.array([reference[result.tobytes()] for result in augmented])  # a KeyError is a wrong image
    for axis in (0, 1):
        frequencies = np.bincount(choices[:, axis], minlength=9) / count
        np.testing.assert_allclose(frequencies, 1 / 9, atol=0.025)  # 5 standard deviations
    np.testing.assert_allclose(choices[:, 2].mean(), 0.5 if flip else 0, atol=0.04)
    # Rows, columns and flips are drawn independently.
    assert len(np.unique(choices, axis=0)) == (162 if flip else 81)


def test_images_of_a_batch_are_augmented_separately_and_stay_in_order():
    batch = images(64)
    augmented = np.asarray(augment(jax.random.key(1), jnp.asarray(batch), flip=True))
    choices = [candidates(image, flip=True)[result.tobytes()] for image, result in zip(batch, augmented, strict=True)]
    assert len(set(choices)) > 30


def test_the_key_decides():
    batch = jnp.asarray(images(16))
    first, again, other = (np.asarray(augment(jax.random.key(seed), batch, flip=True)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_padding_is_black_before_normalisation():
    white = jnp.full((200, 32, 32, 3), 255, jnp.uint8)
    augmented = np.asarray(augment(jax.random.key(0), white, flip=True))
    assert set(np.unique(augmented)) == {0, 255}
    border = np.ones((32, 32), bool)
    border[PADDING:-PADDING, PADDING:-PADDING] = False
    assert (augmented[:, ~border] == 255).all()


def test_normalisation_is_torchvisions():
    batch = images(4)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = (batch / 255 - np.array(mean)) / np.array(std)
    result = normalise(jnp.asarray(batch), mean, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)
