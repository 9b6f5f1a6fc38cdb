"""``flax-shufflenet evaluate`` agrees with plain NumPy, on trained nets, converted nets and folders."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flax_shufflenet as fs
from flax_shufflenet.commands import evaluate, measuring
from flax_shufflenet.datasets import data
from flax_shufflenet.runs.run import wilson_interval
from tests.command_tools import run_command
from tests.net_tools import apply, new_net

TINY = {"stage_widths": (8,), "stage_blocks": (1,), "stem_width": 4, "last_width": 16}


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A net as training saves it, with the classes of the digits; its scores are far apart."""
    model = new_net(fs.Architecture(**TINY))
    model.eval()
    model.classifier.kernel[...] *= 100
    folder = tmp_path_factory.mktemp("nets")
    digits = data.load("digits", folder)
    described = {
        "dataset": "digits",
        "image_size": "32",
        "class_names": json.dumps(digits.class_names),
        "mean": json.dumps(digits.mean),
        "std": json.dumps(digits.std),
    }
    fs.save(model, folder / "trained.safetensors", described)
    fs.save(model, folder / "converted.safetensors", {"layout": "seed"})
    return model, folder


def figures(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    scores = np.asarray(scores, np.float64)
    losses = (
        np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1))
        + scores.max(1)
        - scores[range(len(labels)), labels]
    )
    return float(np.mean(scores.argmax(1) == labels)), float(losses.mean())


def test_a_trained_net_on_its_own_dataset_is_what_numpy_says(net, capsys):
    model, folder = net
    digits = data.load("digits", folder)
    images = ((digits.test_images / 255 - digits.mean) / digits.std).astype(np.float32)
    accuracy, loss = figures(np.asarray(apply(model, jnp.asarray(images))), digits.test_labels)

    code, out, err = run_command(capsys, evaluate, folder / "trained.safetensors", "--json")
    assert (code, err) == (0, [])
    record = json.loads(out)
    assert record["images"] == 360
    assert record["accuracy"] == pytest.approx(accuracy, abs=1 / 360)  # rounding may tip one image
    assert record["loss"] == pytest.approx(loss, rel=1e-3)
    low, high = record["accuracy_95"]
    assert low < record["accuracy"] < high
    assert {name: one["images"] for name, one in record["classes"].items()} == {
        str(digit): int(count) for digit, count in enumerate(np.bincount(digits.test_labels))
    }
    assert sum(one["correct"] for one in record["classes"].values()) == round(record["accuracy"] * 360)
    for one in record["classes"].values():
        assert one["accuracy_95"] == list(wilson_interval(one["correct"], one["images"]))
    bins = record["calibration"]
    assert (len(bins["images"]), sum(bins["images"])) == (15, 360)
    assert np.dot(bins["images"], bins["accuracy"]) / 360 == pytest.approx(record["accuracy"])
    assert 0 < record["calibration_error"] < 1
    assert record["robustness"] is None
    assert record["images_per_second"] > 0

    code, out, err = run_command(capsys, evaluate, folder / "trained.safetensors", "--test_flip")
    assert (code, out, len(err)) == (2, "", 1)
    assert "a mirrored digit is no digit" in err[0]
    code, out, err = run_command(capsys, evaluate, folder / "trained.safetensors", "--skip_unreadable")
    assert (code, out) == (2, "")
    assert err == [
        "evaluate: --skip_unreadable is for a folder of images and imagenet2012, not for digits (see --help)"
    ]


def test_a_converted_net_says_what_it_assumes_and_prints_a_table(net, capsys):
    _, folder = net
    code, out, err = run_command(capsys, evaluate, folder / "converted.safetensors", "--dataset", "digits")
    assert code == 0
    assert [line.split(":")[0] for line in err] == ["assumed normalisation", "assumed image size"]
    assert "scikit-learn: 360 test images" in out
    assert "95 % interval" in out
    assert len(out.splitlines()) == 5 + 1 + 10


def test_robustness_is_measured_on_request_and_digits_are_not_mirrored(net, capsys):
    model, folder = net
    digits = data.load("digits", folder)
    right = 0
    for down, to_right in ((-2, 0), (2, 0), (0, -2), (0, 2)):
        framed = np.pad(digits.test_images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        moved = framed[:, 2 - down : 34 - down, 2 - to_right : 34 - to_right]
        images = ((moved / 255 - digits.mean) / digits.std).astype(np.float32)
        right += int(np.sum(np.asarray(apply(model, jnp.asarray(images))).argmax(1) == digits.test_labels))
    code, out, _ = run_command(capsys, evaluate, folder / "trained.safetensors", "--robustness", "--json")
    found = json.loads(out)["robustness"]
    assert (code, list(found["accuracies"])) == (0, ["shift_2", "shift_4"])
    assert found["accuracies"]["shift_2"] == pytest.approx(
        right / (4 * 360), abs=4 / (4 * 360)
    )  # rounding may tip some

    code, out, _ = run_command(capsys, evaluate, folder / "trained.safetensors", "--robustness")
    lines = out.splitlines()
    assert code == 0
    assert "not mirrored left to right: a mirrored digit is no digit" in lines
    said = rf"shifted by 2 pixels  {100 * found['accuracies']['shift_2']:.2f}%, [+-][\d.]+ points"
    assert [line for line in lines if re.fullmatch(said, line)]


def test_a_folder_is_evaluated_in_the_nets_size(net, tmp_path, capsys):
    model, folder = net
    rng = np.random.default_rng(0)
    images, labels = [], []
    for label in range(10):
        path = tmp_path / "val" / f"class {label}"
        path.mkdir(parents=True)
        for number in range(2):
            images.append(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
            labels.append(label)
            Image.fromarray(images[-1]).save(path / f"{number}.png")
    resized = np.stack(
        [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    )
    scores = apply(model, jnp.asarray((resized / 255 - 0.5) / 0.25, jnp.float32))
    accuracy, loss = figures(np.asarray(scores), np.array(labels))
    options = ("--mean", 0.5, 0.5, 0.5, "--std", 0.25, 0.25, 0.25, "--json")
    code, out, _ = run_command(capsys, evaluate, folder / "converted.safetensors", "--dataset", tmp_path, *options)
    assert code == 0
    record = json.loads(out)
    assert (record["images"], record["accuracy"]) == (20, accuracy)
    assert record["loss"] == pytest.approx(loss, rel=1e-3)

    mirrored = apply(model, jnp.asarray((resized[:, :, ::-1] / 255 - 0.5) / 0.25, jnp.float32))
    accuracy, loss = figures(np.asarray(scores + mirrored) / 2, np.array(labels))
    arguments = (folder / "converted.safetensors", "--dataset", tmp_path, *options, "--test_flip")
    record = json.loads(run_command(capsys, evaluate, *arguments)[1])
    assert record["accuracy"] == accuracy
    assert record["loss"] == pytest.approx(loss, rel=1e-3)

    code, _, err = run_command(capsys, evaluate, folder / "trained.safetensors", "--dataset", tmp_path)
    assert code == 1
    assert err == [
        f"evaluate: {folder / 'trained.safetensors'} has other classes than {tmp_path}: '0', '1', '2' and 7 more where "
        "that has 'class 0', 'class 1', 'class 2' and 7 more"
    ]


@pytest.mark.parametrize("batch", [4, 128])
def test_images_that_cannot_be_read_are_all_named_and_skipped_on_request(net, tmp_path, capsys, monkeypatch, batch):
    for module in (evaluate, measuring):
        monkeypatch.setattr(module, "BATCH", batch)
    _, folder = net
    for label in range(10):
        path = tmp_path / "val" / str(label)
        path.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8), (20 * label, 90 * number, 0)).save(path / f"{number}.png")
    arguments = (folder / "trained.safetensors", "--dataset", tmp_path, "--json")
    damaged = [tmp_path / "val" / "0" / "1.png", *(tmp_path / "val" / "9" / f"{number}.png" for number in range(2))]
    for path in damaged:
        path.write_bytes(b"damaged")
    code, out, err = run_command(capsys, evaluate, *arguments)
    assert (code, out) == (1, "")
    said = f"3 of the images and folders in {tmp_path} cannot be read"
    assert [line.split(": ")[0] for line in err] == [*map(str, damaged), "evaluate"]
    assert err[-1].startswith(f"evaluate: {said}: repair or remove")

    code, out, err = run_command(capsys, evaluate, *arguments, "--skip_unreadable")
    record = json.loads(out)
    assert (code, record["images"], sum(one["correct"] for one in record["classes"].values())) == (
        0,
        17,
        round(17 * record["accuracy"]),
    )
    assert err == [*record["skipped"], f"{said}: going on without"]
    assert [line.split(": ")[0] for line in record["skipped"]] == list(map(str, damaged))
    assert record["classes"]["9"] == {"images": 0, "correct": 0, "accuracy_95": None}
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"")
    code, _, err = run_command(capsys, evaluate, *arguments, "--skip_unreadable")
    assert (code, err[-1]) == (1, f"evaluate: {tmp_path / 'val'}: no image that can be read")


ANIMALS = ("zebra", "cat", "ox")


def write_classes(folder: Path, count: int = 2) -> dict[str, list[np.ndarray]]:
    """``folder/ANIMAL/*.png`` of 32x32 noise; returns the pixels."""
    random = np.random.default_rng(0)
    pixels = {name: [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)] for name in ANIMALS}
    for name, images in pixels.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return pixels


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A net whose classes are not sorted by name."""
    model = new_net(fs.Architecture(**TINY, num_classes=3))
    model.eval()
    model.classifier.kernel[...] *= 100
    path = tmp_path_factory.mktemp("animals") / "net.safetensors"
    told = {"image_size": "32", "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.25, 0.25]"}
    fs.save(model, path, told | {"class_names": json.dumps(ANIMALS)})
    fs.save(model, path.with_name("nameless.safetensors"), told)
    return model, path


@pytest.mark.parametrize("part", ["", "TEST"])
def test_a_folder_of_classes_is_taken_whole_and_its_classes_by_name(animals, tmp_path, capsys, part):
    model, path = animals
    pixels = write_classes(tmp_path / part)
    scores = [apply(model, jnp.asarray((np.stack(pixels[name]) / 255 - 0.5) / 0.25, jnp.float32)) for name in ANIMALS]
    accuracy, loss = figures(np.concatenate(scores), np.repeat(np.arange(3), 2))
    code, out, err = run_command(capsys, evaluate, path, "--dataset", tmp_path, "--json")
    record = json.loads(out)
    assert (code, err, record["images"], record["accuracy"]) == (0, [], 6, accuracy)
    assert record["loss"] == pytest.approx(loss, rel=1e-3)
    assert list(record["classes"]) == list(ANIMALS)
    assert record["source"] == str(tmp_path / part)

    # A net without names has its classes in the order of the folders, and that is said.
    _, loss = figures(np.concatenate([scores[1], scores[2], scores[0]]), np.repeat(np.arange(3), 2))
    code, out, err = run_command(
        capsys, evaluate, path.with_name("nameless.safetensors"), "--dataset", tmp_path, "--json"
    )
    record = json.loads(out)
    assert (code, err) == (0, ["assumed order of the classes: that of the names of their folders"])
    assert record["loss"] == pytest.approx(loss, rel=1e-3)
    assert list(record["classes"]) == sorted(ANIMALS)


def test_a_folder_whose_classes_are_not_the_nets_is_refused_plainly(animals, tmp_path, capsys):
    _, path = animals
    write_classes(tmp_path)
    (tmp_path / "cat").rename(tmp_path / "Cat")
    code, out, err = run_command(capsys, evaluate, path, "--dataset", tmp_path)
    assert (code, out) == (1, "")
    assert err == [f"evaluate: {path} has other classes than {tmp_path}: 'cat' where that has 'Cat'"]
    (tmp_path / "Cat").rename(tmp_path / "train")
    assert run_command(capsys, evaluate, path, "--dataset", tmp_path)[2][0].endswith("'cat' where that has 'train'")
    (tmp_path / "ox").rename(tmp_path / "train" / "ox")
    code, _, err = run_command(capsys, evaluate, path, "--dataset", tmp_path)
    expected = f"found train/, zebra/; images are expected in {tmp_path}/test/CLASS (or val, valid, validation)"
    assert (code, err) == (1, [f"evaluate: {tmp_path}: no test part in it; {expected}"])
    (tmp_path / "train").rename(tmp_path / ".train")
    code, _, err = run_command(capsys, evaluate, path, "--dataset", tmp_path)
    assert err == [f"evaluate: {tmp_path}: it has to have two class folders at least; found zebra/"]


def test_what_a_net_was_trained_on_is_not_taken_for_a_test_set_in_silence(animals, tmp_path, capsys):
    model, _ = animals
    write_classes(tmp_path / "set" / "Train")
    fs.save(model, tmp_path / "net.safetensors", {"dataset": str(tmp_path / "set"), "class_names": json.dumps(ANIMALS)})
    code, out, _ = run_command(
        capsys, evaluate, tmp_path / "net.safetensors", "--dataset", tmp_path / "set" / "Train", "--json"
    )
    assert (code, json.loads(out)["source"]) == (0, f"{tmp_path / 'set' / 'Train'}, which the net was trained on")


def test_a_net_that_was_trained_on_no_mirrored_images_is_not_tested_on_them(animals, tmp_path, capsys):
    model, _ = animals
    write_classes(tmp_path / "set", count=1)
    net = tmp_path / "net.safetensors"
    fs.save(model, net, {"class_names": json.dumps(ANIMALS), "flip": "false"})
    why = "the net was trained on no mirrored images, which might be of another class"
    code, out, _ = run_command(capsys, evaluate, net, "--dataset", tmp_path / "set", "--robustness", "--json")
    found = json.loads(out)["robustness"]
    assert (code, list(found["accuracies"])) == (0, ["shift_2", "shift_4"])
    assert found["notes"][0] == f"not mirrored left to right: {why}"
    code, out, err = run_command(capsys, evaluate, net, "--dataset", tmp_path / "set", "--test_flip")
    assert (code, out, err) == (2, "", [f"evaluate: --test_flip cannot be used with {net}: {why} (see --help)"])


def test_a_net_whose_folder_is_elsewhere_says_so(animals, tmp_path, capsys):
    model, _ = animals
    fs.save(model, tmp_path / "net.safetensors", {"dataset": "gone"})
    code, out, err = run_command(capsys, evaluate, tmp_path / "net.safetensors")
    said = f"{tmp_path / 'net.safetensors'} was trained on the folder gone, which is not to be found from here"
    assert (code, out, err) == (2, "", [f"evaluate: name the --dataset: {said} (see --help)"])


def test_another_class_count_or_an_unknown_dataset_is_refused_in_one_line(net, tmp_path, capsys):
    _, folder = net
    for name in ("a", "b"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "test" / name / "0.png")
    code, _, err = run_command(capsys, evaluate, folder / "trained.safetensors", "--dataset", tmp_path)
    assert (code, err) == (1, [f"evaluate: {folder / 'trained.safetensors'} has 10 classes, but {tmp_path} has 2"])
    code, _, err = run_command(capsys, evaluate, folder / "trained.safetensors", "--dataset", "cifar11")
    assert code == 2
    assert err == [
        "evaluate: --dataset cifar11 is neither cifar10, cifar100, digits, imagenet2012 nor a folder (see --help)"
    ]
