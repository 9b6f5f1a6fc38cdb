"""Random crops of large images are torchvision's, and files are decoded no finer than a crop needs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images

import flax_shufflenet as fs
from flax_shufflenet.datasets import image_folder, streamed
from flax_shufflenet.images import reading
from flax_shufflenet.images.cropping import Box, random_box, random_crop
from flax_shufflenet.images.preprocessing import expected_by
from flax_shufflenet.training.config import Config
from flax_shufflenet.training.description import net_metadata
from flax_shufflenet.training.evaluation import Evaluation


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """640x427 pixels."""
    return Image.fromarray(load_sample_images().images[0])


@pytest.fixture(scope="module")
def png(photo, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    photo.save(path)
    return path


def box_by_torchvisions_formula(width, height, random):
    """``get_params`` as torchvision's documentation says it, with the same draws in the same order."""
    scale, ratio = (0.08, 1.0), (3.0 / 4.0, 4.0 / 3.0)
    for _ in range(10):
        area = width * height * random.uniform(scale[0], scale[1])
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = random.integers(0, height - h + 1)
            left = random.integers(0, width - w + 1)
            return left, top, w, h
    return None


@pytest.mark.parametrize("size", [(640, 427), (300, 400), (224, 224), (9, 7), (1, 1)])
def test_boxes_are_torchvisions(size: tuple[int, int]):
    for seed in range(300):
        box = random_box(*size, np.random.default_rng(seed))
        assert tuple(box) == box_by_torchvisions_formula(*size, np.random.default_rng(seed))


def test_areas_ratios_and_places_are_spread_as_documented():
    random = np.random.default_rng(0)
    boxes = np.array([random_box(1000, 1000, random) for _ in range(4000)], float)
    left, top, width, height = boxes.T
    areas, ratios = width * height / 1e6, np.log(width / height) / math.log(4 / 3)
    assert areas.min() > 0.079
    assert areas.max() <= 1
    assert -1.01 < ratios.min() < -0.95
    assert 0.95 < ratios.max() < 1.01
    assert abs(ratios.mean()) < 0.03
    # Large areas of another ratio do not fit, and are drawn anew: up to three quarters all do.
    shares, _ = np.histogram(areas[areas < 0.75], bins=5, range=(0.08, 0.75))
    assert shares.min() > 0.8 * shares.max()
    for start, side in ((left, width), (top, height)):
        room = 1000 - side
        places = start[room > 100] / room[room > 100]
        assert abs(places.mean() - 0.5) < 0.02
        assert places.min() < 0.01
        assert places.max() > 0.99


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), Box(493, 0, 13, 10)), ((10, 1000), Box(0, 493, 10, 13)), ((3000, 2), Box(1498, 0, 3, 2))],
)
def test_of_a_narrow_strip_it_is_the_middle(size: tuple[int, int], box):
    assert {random_box(*size, np.random.default_rng(seed)) for seed in range(20)} == {box}


def crops(photo: Image.Image, seed: int, size: int):
    """What PyTorch and Pillow, each in its own way, make of the part that a seed draws, in float."""
    left, top, width, height = random_box(*photo.size, np.random.default_rng(seed))
    box = (left, top, left + width, top + height)
    cropped = torch.tensor(np.asarray(photo.crop(box)), dtype=torch.float64).permute(2, 0, 1)[None]
    by_torch = F.interpolate(cropped, (size, size), mode="bilinear", antialias=True, align_corners=False)
    by_box = photo.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return by_torch[0].permute(1, 2, 0).numpy(), np.asarray(by_box, float)


@pytest.mark.parametrize("size", [224, 96])
def test_a_crop_is_resized_as_pytorch_and_pillow_do_it(photo, png, size):
    for seed in range(8):
        ours = random_crop(png, size, np.random.default_rng(seed), flip=False).astype(float)
        by_torch, by_box = crops(photo, seed, size)
        assert np.abs(ours - by_torch).max() <= 1  # Pillow rounds between the two directions
        # Pillow's own box lets the filter reach beyond it, which matters along its edges alone.
        edge = 4
        assert np.abs(ours - by_box)[edge:-edge, edge:-edge].max() <= 1


def test_half_of_the_crops_are_mirrored(png):
    mirrored = 0
    for seed in range(40):
        plain = random_crop(png, 64, np.random.default_rng(seed), flip=False)
        other = random_crop(png, 64, np.random.default_rng(seed), flip=True)
        if not np.array_equal(other, plain):
            np.testing.assert_array_equal(other, plain[:, ::-1])
            mirrored += 1
    assert 12 <= mirrored <= 28


def test_a_large_jpeg_is_decoded_no_finer_than_the_crop_needs_and_gives_nearly_the_same(photo, tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    photo.resize((2560, 1708), Image.Resampling.BICUBIC).save(path, quality=95)
    whole = reading.read(path)
    decoded = []
    original = Image.Image.resize

    def resize(image, *arguments, **options):
        decoded.append(image.size[0])
        return original(image, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for seed in range(20):
        left, top, width, height = random_box(*whole.size, np.random.default_rng(seed))
        ours = random_crop(path, 128, np.random.default_rng(seed), flip=False).astype(float)
        finer = decoded[-1] / 2560 * min(width, height) / 128
        assert finer >= 2
        assert finer < 4 or decoded[-1] == 320
        part = whole.crop((left, top, left + width, top + height))
        expected = original(part, (128, 128), Image.Resampling.BILINEAR)
        difference = np.abs(ours - np.asarray(expected))
        assert difference.mean() < 0.6
    assert set(decoded) == {640, 1280}


def test_a_crop_is_of_the_image_as_people_see_it(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo.save(tmp_path / "lying.jpg", exif=exif, quality=95)
    seen = reading.read(tmp_path / "lying.jpg")
    assert seen.size == photo.size[::-1]
    left, top, width, height = random_box(*seen.size, np.random.default_rng(5))
    expected = seen.crop((left, top, left + width, top + height)).resize((200, 200), Image.Resampling.BILINEAR)
    ours = random_crop(tmp_path / "lying.jpg", 200, np.random.default_rng(5), flip=False)
    np.testing.assert_array_equal(ours, np.asarray(expected))


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "none.jpg").write_bytes(b"none")
    with pytest.raises(reading.ImageError, match=r"none\.jpg: cannot be read as an image"):
        random_crop(tmp_path / "none.jpg", 8, np.random.default_rng(0), flip=False)


@pytest.fixture
def photo_folder(photo, tmp_path):
    for part in ("train", "test"):
        for name, box in (("left", (0, 0, 320, 427)), ("right", (320, 0, 640, 427))):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            photo.crop(box).save(tmp_path / "photos" / part / name / "image.png")
    return tmp_path / "photos"


def test_a_net_of_large_streamed_images_is_tested_and_used_on_their_middle(photo_folder):
    dataset = streamed.open_stream(image_folder.find_parts(photo_folder, None), 112, skip_unreadable=False)
    assert dataset.short_side == 116
    with Image.open(photo_folder / "test" / "left" / "image.png") as image:
        resized = image.resize((116, int(427 / 320 * 116)), Image.Resampling.BILINEAR)
        left, top = (round((side - 112) / 2) for side in resized.size)
        expected = np.asarray(resized.crop((left, top, left + 112, top + 112)), float)
        assert np.abs(dataset.test_image(0) - expected).max() <= 1

        metadata = net_metadata(Config(dataset=str(photo_folder)), dataset, Evaluation(0.1, 0.9), 1)
        assert json.loads(metadata["short_side"]) == 116
        expects = expected_by(fs.seed(0.5, 2), metadata)
        np.testing.assert_array_equal(expects.fit(image), dataset.test_image(0))
        assert expects.resize == "short side to 116 pixels, centre of 112x112, bilinear"
    assert expected_by(fs.seed(0.5, 2), metadata, size=224).short_side == 232
    with pytest.raises(ValueError, match="its short_side is not a whole number of pixels"):
        expected_by(fs.seed(0.5, 2), metadata | {"short_side": "true"})


def test_the_training_images_of_a_streamed_folder_are_random_crops(photo_folder):
    dataset = streamed.open_stream(image_folder.find_parts(photo_folder, None), 112, skip_unreadable=False)
    ours = dataset.train_image(1, np.random.default_rng(3))
    expected = random_crop(dataset.train_files[1], 112, np.random.default_rng(3), flip=True)
    np.testing.assert_array_equal(ours, expected)
    assert not np.array_equal(ours, dataset.train_image(1, np.random.default_rng(4)))
