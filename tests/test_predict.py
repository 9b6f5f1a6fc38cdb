"""``flax-shufflenet predict``, and what it knows of image files and of a net's images."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flax_shufflenet as fs
from flax_shufflenet.commands import evaluate, export, predict
from flax_shufflenet.images import reading
from flax_shufflenet.images.pixel_net import of_pixels
from flax_shufflenet.images.preprocessing import expected_by
from tests.command_tools import run_command
from tests.folder_tools import too_deep
from tests.net_tools import apply, new_net

TINY: dict[str, Any] = {"stage_widths": (8,), "stage_blocks": (1,), "stem_width": 4, "last_width": 16}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
METADATA = {
    "class_names": '["ant", "bee", "cow"]',
    "mean": json.dumps(MEAN),
    "std": json.dumps(STD),
    "image_size": "16",
}


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def save_net(path: Path, metadata: dict[str, str] = METADATA, **fields) -> fs.ShuffleNetV2:
    model = new_net(fs.Architecture(**TINY | {"num_classes": 3} | fields))
    model.eval()
    if model.architecture.num_classes:
        model.classifier.kernel[...] *= 100  # so that the classes differ
    fs.save(model, path, metadata)
    return model


def run(capsys, *arguments: str | Path | int) -> tuple[int, list[str], list[str]]:
    code, out, err = run_command(capsys, predict, *arguments)
    return code, out.splitlines(), err


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


# --- predictions


def test_the_same_from_python(tmp_path, capsys):
    path, file = tmp_path / "net.safetensors", tmp_path / "a.png"
    save_net(path)
    Image.fromarray(noise(40, 30)).save(file)
    how = fs.read_preprocessing(path)
    net = fs.of_pixels(fs.fuse(fs.load(path)), how)
    pixels = np.stack([how.fit(Image.open(file).convert("RGB"))])
    best = how.class_names[int(net(jnp.asarray(pixels)).argmax())]
    _, out, _ = run(capsys, path, file, "--top_k", 1)
    assert out[0].split("\t")[:2] == [str(file), best]


def test_what_a_file_does_not_say_of_its_images_is_warned_of(tmp_path):
    path = tmp_path / "net.safetensors"
    save_net(path, {}, num_classes=10)
    with pytest.warns(UserWarning, match=r"does not say how .* normalisation: CIFAR-10's; image size: "):
        how = fs.read_preprocessing(path)
    assert (how.size, how.mean) == (32, (0.4914, 0.4822, 0.4465))
    save_net(path, METADATA | {"mean": "[0, 1]"})
    with pytest.raises(ValueError, match="its mean is not three numbers") as error:
        fs.read_preprocessing(path)
    assert str(error.value).startswith(str(path))


def test_a_shipped_net_says_how_it_takes_its_images():
    assert fs.read_preprocessing("shufflenet_0.5_cifar10").class_names[3] == "cat"


def test_a_folder_is_the_models_own_classes_and_probabilities(tmp_path, capsys):
    model = save_net(tmp_path / "net.safetensors")
    folder = tmp_path / "images"
    pixels = [noise(16, 16, seed=seed) for seed in range(3)]
    for name, image in zip(("b/1.PNG", "a.png", "b/0.png"), pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8 not much")
    (folder / "b" / "loop").symlink_to("..", target_is_directory=True)

    code, out, err = run(capsys, tmp_path / "net.safetensors", folder, "--json", "--top_k", 3)
    assert code == 1  # for the damaged one
    assert err == [f"predict: {folder / 'damaged.jpg'}: cannot be read as an image (cannot identify image file)"]
    records = [json.loads(line) for line in out]
    assert [Path(record["image"]).relative_to(folder).as_posix() for record in records] == [
        "a.png",
        "b/0.png",
        "b/1.PNG",
    ]
    ordered = np.stack([pixels[1], pixels[2], pixels[0]])
    normalised = jnp.asarray((ordered / 255 - MEAN) / STD, jnp.float32)
    all_scores = apply(model, normalised)
    for record, scores in zip(records, np.asarray(all_scores, np.float64), strict=True):
        expected = np.exp(scores) / np.exp(scores).sum()
        found = {one["class"]: one["probability"] for one in record["predictions"]}
        np.testing.assert_allclose([found[name] for name in ("ant", "bee", "cow")], expected, rtol=1e-3)
        assert list(found.values()) == sorted(found.values(), reverse=True)

    # The same for people, with the default number of classes.
    code, lines, _ = run(capsys, tmp_path / "net.safetensors", folder / "a.png")
    assert code == 0
    path, name, share, *_ = lines[0].split("\t")
    assert (path, name) == (str(folder / "a.png"), records[0]["predictions"][0]["class"])
    assert float(share) == pytest.approx(records[0]["predictions"][0]["probability"], abs=1e-4)


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_predicted(several_nets, tmp_path, capsys):
    path = too_deep(tmp_path)
    Image.fromarray(noise(16, 16)).save(tmp_path / "a.png")
    code, out, err = run(capsys, several_nets / "net.safetensors", tmp_path)
    assert (code, len(out)) == (1, 1)
    assert err == [f"predict: {path}: this folder cannot be read (File name too long)"]


def test_more_images_than_a_batch_keep_their_order(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "_BATCHES", (1, 2))
    save_net(tmp_path / "net.safetensors")
    for number in range(5):
        Image.fromarray(noise(16, 16, seed=number)).save(tmp_path / f"{number}.png")
    one_by_one = [run(capsys, tmp_path / "net.safetensors", tmp_path / f"{number}.png")[1][0] for number in range(5)]
    (tmp_path / "2.png").write_bytes(b"damaged")
    code, together, _ = run(capsys, tmp_path / "net.safetensors", tmp_path)
    assert code == 1
    assert together == [line for line in one_by_one if "2.png" not in line]


def test_what_a_converted_net_does_not_say_is_assumed_aloud_and_can_be_given(tmp_path, capsys):
    save_net(tmp_path / "net.safetensors", {"layout": "seed"}, num_classes=10)
    Image.fromarray(noise(32, 32)).save(tmp_path / "image.png")
    code, out, err = run(capsys, tmp_path / "net.safetensors", tmp_path / "image.png")
    assert code == 0
    assert [line.split(":")[0] for line in err] == [
        "assumed normalisation",
        "assumed image size",
        "assumed class names",
    ]
    assert "CIFAR-10's" in err[0]
    assert out[0].split("\t")[1] in expected_by(fs.seed(0.5, 10), {}).class_names

    (tmp_path / "names.txt").write_text("\n".join(f"class {number}" for number in range(10)) + "\n")
    given = ("--size", 32, "--mean", ".4914", ".4822", ".4465", "--std", ".2023", ".1994", ".2010")
    given = (*given, "--classes", tmp_path / "names.txt")
    code, same, err = run(capsys, tmp_path / "net.safetensors", tmp_path / "image.png", *given)
    assert (code, err) == (0, [])
    assert same[0].split("\t")[2] == out[0].split("\t")[2]
    assert same[0].split("\t")[1].startswith("class ")


@pytest.fixture(scope="module")
def several_nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    save_net(folder / "net.safetensors")
    save_net(folder / "backbone.safetensors", {}, num_classes=0)
    save_net(folder / "altered.safetensors", {**METADATA, "std": "[1, 0, 1]"})
    Image.fromarray(noise(16, 16)).save(folder / "a.png")
    (folder / "two.txt").write_text("one\ntwo\n")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["net.safetensors"], 2, "name at least one image or folder"),
        (["net.safetensors", "a.png", "--top_k", "0"], 2, "--top_k must be at least 1"),
        (["net.safetensors", "a.png", "--top_k", "4"], 2, "--top_k must be at most 3"),
        (["net.safetensors", "a.png", "--std", "1", "0", "1"], 2, "--std must be three finite numbers above 0"),
        (["net.safetensors", "a.png", "--classes", "a.png"], 2, "--classes a.png cannot be read"),
        (["net.safetensors", "a.png", "--classes", "two.txt"], 2, "--classes has 2 names"),
        (["net.safetensors", "--no_such_option"], 2, "--no_such_option"),
        (["missing.safetensors", "a.png"], 1, "missing.safetensors: no such file"),
        (["backbone.safetensors", "a.png"], 1, "a backbone, which has no classes"),
        (["altered.safetensors", "a.png"], 1, "altered.safetensors: its std is not three numbers above 0"),
        (["net.safetensors", "empty"], 1, "empty: no images in it"),
        (["net.safetensors", "missing.png"], 1, "missing.png: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(several_nets, capsys, monkeypatch, arguments, code, said):
    monkeypatch.chdir(several_nets)
    found, out, err = run(capsys, *arguments)
    assert found == code
    assert out == []
    assert len(err) == 1
    assert said in err[0]


@pytest.mark.parametrize("command", [predict, evaluate, export])
@pytest.mark.parametrize(
    ("given", "divided"),
    [
        (
            "--mean 123.675 116.28 103.53 --std 58.395 57.12 57.375",
            "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
        ),
        ("--mean 103.53 116.28 123.675 --std 1 1 1", "--mean 0.406 0.456 0.485 --std 0.00392157 0.00392157 0.00392157"),
        ("--mean 127.5 127.5 127.5 --std 0.5 0.5 0.5", "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"),
        ("--mean 0 0 0 --std 255 255 255", "--mean 0 0 0 --std 1 1 1"),
        ("--mean 127.5 0 0", "--mean 0.5 0 0"),
        ("--std 58.395 57.12 57.375", "--std 0.229 0.224 0.225"),
    ],
)
def test_means_and_deviations_of_values_to_255_are_refused_with_those_to_give(
    several_nets, capsys, command, given, divided
):
    images = [several_nets / "a.png"] if command is predict else []
    code, out, err = run_command(capsys, command, several_nets / "net.safetensors", *images, *given.split())
    assert (code, out) == (2, "")
    name = command.__name__.rpartition(".")[2]
    assert err == [
        f"{name}: {given}: for values from 0 to 255, but here values lie between 0 and 1; divided by 255: {divided} "
        "(see --help)"
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_class_names_are_read_as_windows_writes_them(several_nets, tmp_path, capsys, mark, line_end):
    names = tmp_path / "names.txt"
    names.write_bytes(mark + line_end.join([b"ant", "l\u00f6we".encode(), b"red cow", b""]))
    arguments = (several_nets / "net.safetensors", several_nets / "a.png", "--json", "--classes", names)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert {one["class"] for one in json.loads(out[0])["predictions"]} == {"ant", "l\u00f6we", "red cow"}


def test_class_names_in_another_encoding_are_refused(several_nets, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_bytes("ant\r\nbee\r\ncow\r\n".encode("utf-16"))
    code, _, err = run(capsys, several_nets / "net.safetensors", several_nets / "a.png", "--classes", names)
    assert (code, err) == (2, [f"predict: --classes {names} cannot be read (not UTF-8 text) (see --help)"])


# --- image files


def test_every_kind_of_file_shows_the_same_picture(tmp_path):
    colour = noise(9, 7)
    grey = colour[..., 0]
    palette = Image.fromarray(colour // 64 * 64).quantize(64)
    grey_16 = grey.astype(np.uint16) * 257
    for name, image, expected in (
        ("rgb.png", Image.fromarray(colour), colour),
        ("rgb.bmp", Image.fromarray(colour), colour),
        ("grey.png", Image.fromarray(grey), np.stack([grey] * 3, -1)),
        ("grey16.png", Image.fromarray(grey_16), np.stack([grey] * 3, -1)),
        ("grey16.tif", Image.fromarray(grey_16), np.stack([grey] * 3, -1)),
        ("grey16.pgm", Image.fromarray(grey_16), np.stack([grey] * 3, -1)),
        ("one_bit.png", Image.fromarray(grey > 99), np.stack([(grey > 99) * np.uint8(255)] * 3, -1)),
        ("palette.png", palette, np.asarray(palette.convert("RGB"))),
        ("cmyk.tif", Image.fromarray(colour).convert("CMYK"), colour),
    ):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(reading.read(tmp_path / name)), expected, err_msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of IM's images, which Pillow will soon not read
def test_a_folders_images_are_all_that_pillow_reads(tmp_path):
    readable = set()
    # PFM's values are floats, and PostScript needs another program.
    for ending in Image.registered_extensions().keys() - {".im", ".pfm", ".eps", ".ps"}:
        path = tmp_path / f"image{ending}"
        with contextlib.suppress(ValueError, OSError, KeyError):  # what Pillow only reads, or writes of another mode
            Image.fromarray(noise(8, 8)).save(path)
        if path.exists() and not isinstance(reading.read_as(path, lambda image: image), reading.ImageError):
            readable.add(ending)
    assert readable >= {".jfif", ".jpe", ".jp2", ".mpo", ".qoi", ".tga", ".webp"}
    assert readable <= {path.suffix for path in reading.find(tmp_path).paths}


def test_transparent_parts_are_white(tmp_path):
    pixels = np.concatenate([noise(4, 4), np.full((4, 4, 1), 255, np.uint8)], axis=2)
    pixels[:2, :, 3] = 0
    expected = pixels[..., :3].copy()
    expected[:2] = 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(np.asarray(reading.read(tmp_path / "alpha.png")), expected)

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png", transparency=0)
    found = np.asarray(reading.read(tmp_path / "palette.png"))
    np.testing.assert_array_equal(found, [[[255] * 3, [40, 50, 60]]])


def test_a_picture_is_turned_upright(tmp_path):
    upright = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(reading.read(tmp_path / "turned.png")), upright)


@pytest.mark.parametrize(
    ("pixels", "said"), [(np.ones((2, 2), np.float32), "floats"), (np.full((2, 2), 70_000, np.int32), "16 bits")]
)
def test_numbers_of_unknown_range_are_refused(tmp_path, pixels, said):
    Image.fromarray(pixels).save(tmp_path / "values.tif")
    with pytest.raises(reading.ImageError, match=f"values.tif: cannot be read .*{said}"):
        reading.read(tmp_path / "values.tif")


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 280), (100, 90), (256, 256)])
def test_the_centre_is_that_of_resizing_and_cropping(height, width):
    image = Image.fromarray(noise(height, width)).resize((width, height))
    whole = (256, 256 * height // width) if height >= width else (256 * width // height, 256)
    left, top = round((whole[0] - 224) / 2), round((whole[1] - 224) / 2)
    expected = image.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    difference = np.abs(reading.centre_crop(image, 224, 256).astype(int) - np.asarray(expected))
    assert difference.max() <= 1  # Pillow rounds after each direction, and chooses which comes first


def test_a_narrow_strip_takes_no_more_memory_than_its_centre():
    assert reading.centre_crop(Image.new("RGB", (20_000, 1)), 224, 256).shape == (224, 224, 3)


def test_a_centre_crop_of_a_short_side_is_that_side_exactly():
    # 154 * (232 / 154) is 231.99..., which is not to become 231 pixels.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (154, 200, 3), np.uint8))
    whole = np.asarray(image.resize((301, 232), Image.Resampling.BILINEAR)).astype(int)
    left = round((301 - 224) / 2)
    ours = reading.centre_crop(image, 224, 232).astype(int)
    assert np.abs(ours - whole[4:228, left : left + 224]).max() <= 1


# --- what nets expect


def test_assumptions_follow_the_stem_and_the_class_count():
    def expected(family, num_classes, **options):
        return expected_by(fs.preset(family, 0.5, num_classes), {}, **options)

    cifar10, cifar100 = expected("chenyaofo", 10), expected("chenyaofo", 100)
    assert (cifar10.size, cifar10.short_side, cifar10.mean) == (32, None, (0.4914, 0.4822, 0.4465))
    assert cifar100.mean == (0.5070, 0.4865, 0.4409)
    imagenet = expected("torchvision", 1000)
    assert (imagenet.size, imagenet.short_side, imagenet.std) == (224, 256, (0.229, 0.224, 0.225))
    assert expected("torchvision", 10).mean == imagenet.mean
    assert len(imagenet.class_names) == 1000
    smaller = expected("torchvision", 1000, size=112)
    assert smaller.fit(Image.new("RGB", (50, 70))).shape == (112, 112, 3)
    raw = expected("megvii", 1000)
    assert raw.bgr
    np.testing.assert_allclose(raw.std, 1 / 255)
    assert expected("megvii", 1000, mean=(0.0,) * 3, std=(1.0,) * 3).bgr


@pytest.mark.parametrize(
    ("layout", "mean", "std", "bgr"),
    [
        ("megvii", 0.0, 1 / 255, True),
        ("nanodet", 0.485, 0.229, True),
        ("fastestdet", 0.0, 1.0, True),
        ("yolov5lite", 0.0, 1.0, False),
        ("torchvision", 0.485, 0.229, False),
    ],
)
def test_nets_of_a_layout_are_taken_for_its_authors(layout, mean, std, bgr):
    found = expected_by(fs.preset("torchvision", 0.5, 7), {"layout": layout})
    assert (found.mean[0], found.std[0], found.bgr) == (mean, std, bgr)
    assert ("channels" in found.assumed) == bgr


def test_a_trained_nets_file_says_in_which_order_it_takes_the_channels():
    net, normalisation = fs.preset("megvii", 0.5, 7), {"mean": "[0.0, 0.0, 0.0]", "std": "[1.0, 1.0, 1.0]"}
    for order, bgr in ({"channel_order": '"bgr"'}, True), ({"channel_order": '"rgb"'}, False), ({}, False):
        found = expected_by(net, normalisation | order)
        assert (found.bgr, "channels" in found.assumed) == (bgr, False)


def test_blue_comes_first_where_the_net_takes_it_so():
    expected = expected_by(fs.preset("megvii", 0.5), {}, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    pixels = np.array([[[[255, 102, 51]]]], np.uint8)
    found = of_pixels(lambda images: images.reshape(1, 3), expected)(jnp.asarray(pixels))
    np.testing.assert_allclose(found, [[(0.2 - 0.3) / 0.125, (0.4 - 0.2) / 0.25, (1 - 0.1) / 0.5]], rtol=1e-6)
