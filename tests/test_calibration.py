"""Calibration against figures worked out by hand, robustness against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_shufflenet.images.robustness import Robustness
from flax_shufflenet.runs import plots
from flax_shufflenet.runs.calibration import calibration


def test_the_expected_calibration_error_is_the_one_worked_out_by_hand():
    # Bins of 1/15: (14/15, 1] with two images, of which one is right; (7/15, 8/15] with one, right; and (2/15, 3/15],
    # which its upper end is in, with one, wrong.
    confidence = np.array([0.95, 0.97, 0.5, np.linspace(0, 1, 16)[3]])
    found = calibration(confidence, np.array([True, False, True, False]))
    assert dict(enumerate(found.images)) == {bin: {14: 2, 7: 1, 2: 1}.get(bin, 0) for bin in range(15)}
    np.testing.assert_allclose(found.confidence[[14, 7, 2, 0]], [0.96, 0.5, 0.2, 0])
    np.testing.assert_allclose(found.accuracy[[14, 7, 2, 0]], [0.5, 1, 0, 0])
    assert found.error == pytest.approx((2 * 0.46 + 0.5 + 0.2) / 4)
    assert found.tendency == f"{100 * (2 * 0.46 - 0.5 + 0.2) / 4:.2f} points surer than right"
    assert calibration(np.array([0.5]), np.array([True])).tendency == "50.00 points more often right than sure"
    assert plots.reliability(found, "four images").startswith(b"\x89PNG")


def test_a_net_that_is_as_often_right_as_it_is_sure_has_no_calibration_error():
    found = calibration(np.array([0.5, 0.5, 1.0]), np.array([True, False, True]))
    assert found.error == 0


SIDE = 16


def shifted(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Black comes in at the edges."""
    moved = np.zeros_like(images)
    for y in range(SIDE):
        for x in range(SIDE):
            if 0 <= y - down < SIDE and 0 <= x - right < SIDE:
                moved[:, y, x] = images[:, y - down, x - right]
    return moved


@pytest.mark.parametrize("test_flip", [False, True])
def test_accuracy_under_flips_and_shifts_is_what_numpy_says(test_flip):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (48, SIDE, SIDE, 3), dtype=np.uint8)
    weights = random.integers(-9, 10, (SIDE * SIDE * 3, 3)).astype(np.float32)  # whose sums are exact

    def classes_of(pixels: np.ndarray) -> np.ndarray:
        views = (pixels, pixels[:, :, ::-1]) if test_flip else (pixels,)
        return np.sum([view.reshape(len(view), -1) @ weights for view in views], axis=0).argmax(axis=1)

    labels = classes_of(images)
    robustness = Robustness(
        lambda pixels: pixels.astype(jnp.float32).reshape(len(pixels), -1) @ weights, SIDE, test_flip=test_flip
    )
    robustness.add(images[:32], labels[:32])
    robustness.add(images[:15:-1], labels[:31:-1])  # the last 16 of these only fill the batch up
    expected = {}
    for pixels in (2, 4):
        ways = ((-pixels, 0), (pixels, 0), (0, -pixels), (0, pixels))
        expected[f"shift_{pixels}"] = np.mean([classes_of(shifted(images, *way)) == labels for way in ways])
    if not test_flip:
        expected["flip"] = np.mean(classes_of(images[:, :, ::-1]) == labels)
    assert robustness.accuracies == pytest.approx(expected)
    assert 0.2 < min(expected.values()) < max(expected.values()) < 0.99  # so that another way to shift would show
    said = ["shifted: the mean of up, down, left and right, black beyond the edge"]
    if test_flip:
        said.insert(0, "not mirrored left to right: the net's scores are the mean of both already (--test_flip)")
    assert robustness.notes == said


def test_images_too_small_to_be_shifted_are_not():
    robustness = Robustness(lambda pixels: pixels[:, 0, 0].astype(jnp.float32), 8, test_flip=False, why_no_flip="is 6")
    robustness.add(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, int))
    assert robustness.accuracies == {}
    assert robustness.notes == [
        "not mirrored left to right: is 6",
        "not shifted: images of 8x8 pixels would lose too much",
    ]
