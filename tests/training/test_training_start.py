"""What a run starts from, and what it is told about a saved net."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import flax_shufflenet as fs
from flax_shufflenet.architecture import FAMILIES
from flax_shufflenet.errors import OptionError, TrainingError
from flax_shufflenet.training import start
from flax_shufflenet.training.config import Config
from flax_shufflenet.weights import flat_arrays
from tests.net_tools import new_net

TINY = fs.Architecture(stage_widths=(4,), stage_blocks=(1,), stem_width=4, last_width=8, num_classes=3)


@pytest.fixture
def saved(tmp_path):
    """Writes a tiny net, whose architecture and metadata can be said, and returns its path."""

    def write(metadata=None, **fields):
        fs.save(new_net(dataclasses.replace(TINY, **fields)), tmp_path / "net.safetensors", metadata)
        return tmp_path / "net.safetensors"

    return write


def begin(config, dataset):
    return start.initial_model(config, dataset, start.read_init(config))


def arrays_of(model):
    return {name: np.asarray(array) for name, array in flat_arrays(model).items()}


def assert_same(arrays, others, names):
    for name in names:
        np.testing.assert_array_equal(arrays[name], others[name], err_msg=name)


@pytest.mark.parametrize("metadata", [None, {"class_names": json.dumps(["a", "b", "c"])}])
def test_the_same_classes_take_the_whole_net(saved, small_dataset, metadata):
    path = saved(metadata)
    model, description = begin(Config(init=path), small_dataset)
    assert description == f"ShuffleNetV2 from {path}, whole"
    arrays, file = arrays_of(model), arrays_of(fs.load(path))
    assert_same(arrays, file, arrays.keys() | file.keys())
    assert not model.stem.bn.use_running_average  # train mode
    assert not model.dropout.deterministic


@pytest.mark.parametrize(
    ("metadata", "fields", "reason"),
    [
        (None, {"num_classes": 5}, "the net has 5"),
        (None, {"num_classes": 0}, "the net has none"),
        ({"class_names": json.dumps(["d", "e", "f"])}, {}, "the net's have other names"),
    ],
)
def test_other_classes_take_all_but_the_classifier(saved, small_dataset, metadata, fields, reason):
    path = saved(metadata, **fields)
    model, description = begin(Config(init=path), small_dataset)
    assert description.endswith(f"its classifier made anew for 3 classes: {reason}")
    assert model.architecture == TINY
    arrays, file = arrays_of(model), arrays_of(fs.load(path))
    head = {"classifier.kernel", "classifier.bias"}
    assert_same(arrays, file, arrays.keys() - head)
    assert arrays["classifier.kernel"].shape == (8, 3)
    assert fields.get("num_classes") == 0 or not np.array_equal(arrays["classifier.kernel"], file["classifier.kernel"])


@pytest.mark.parametrize(("family", "side"), [(None, 32), ("kuangliu", 32), ("torchvision", 224), ("megvii", 224)])
def test_a_new_net_may_be_of_any_family_with_classes(small_dataset, tmp_path, family, side):
    config = Config(family=family, net_size=0.5, dataset=str(tmp_path))
    assert start.image_size(config, None) == side
    model, description = begin(config, small_dataset)
    assert model.architecture == fs.preset(family or "seed", 0.5, 3)
    assert description == f"ShuffleNetV2 0.5{f' as in {family}' if family else ''}"
    assert config.out_dir.name == f"{tmp_path.name}_{f'{family}_' if family else ''}0.5"


def test_a_family_that_is_none_or_has_no_classes_or_comes_with_a_net_is_refused(saved):
    for family in ("mobilenet", "nanodet"):
        with pytest.raises(OptionError, match=f"^--family must be one of seed, kuangliu, .*pytorchcv_b, not {family}$"):
            Config(family=family)
    with pytest.raises(OptionError, match=r"^--family is for a new net, and INIT has its own: leave it out$"):
        Config(family="torchvision", init=saved())


def test_a_new_net_that_cannot_take_its_images_is_refused_with_the_size_that_it_takes(tmp_path):
    with pytest.raises(
        TrainingError, match=r"^--family megvii is made for images of 224x224 and cannot take 32x32: give"
    ):
        start.image_size(Config(family="megvii", dataset=str(tmp_path), image_size=32), None)
    with pytest.raises(TrainingError, match="cannot take 32x32: learn from a folder of images, with --image_size 224"):
        start.image_size(Config(family="megvii"), None)


def test_a_net_size_that_is_not_the_files_is_refused(saved, small_dataset, tmp_path):
    with pytest.raises(OptionError, match=r"^--net_size 0.5 is not that of the net in .*net.safetensors, whose stages"):
        begin(Config(init=saved(), net_size=0.5), small_dataset)
    half = tmp_path / "half.safetensors"
    fs.save(new_net(fs.seed(0.5, 3)), half)
    model, _ = begin(Config(init=half, net_size=0.5), small_dataset)
    assert model.architecture == fs.seed(0.5, 3)
    with pytest.raises(OptionError, match="stages are 48, 96, 192 wide"):
        begin(Config(init=half, net_size=1.0), small_dataset)


def test_what_the_net_computes_in_is_the_runs(saved, small_dataset):
    model, _ = begin(Config(init=saved(num_classes=5), dtype="bfloat16"), small_dataset)
    assert model.stem.conv.dtype == jnp.bfloat16
    assert model.stem.conv.kernel[...].dtype == jnp.float32


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"not a net", "a text file"), (bytes(9), "not a readable safetensors file")],
)
def test_what_is_no_saved_net_is_one_line(tmp_path, small_dataset, content, said):
    path = tmp_path / "net.safetensors"
    if content:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=f"^--init .*{path.name}: {said}"):
        begin(Config(init=path), small_dataset)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "digits"}, "32x32: learn from a folder of images, with --image_size 14"),
        ({"image_size": 48}, "48x48: give --image_size 14"),
    ],
)
def test_a_net_that_needs_other_images_is_refused_with_the_size_that_it_takes(saved, tmp_path, options, said):
    config = Config(**{"init": saved(pool_size=7), "dataset": str(tmp_path)} | options)
    with pytest.raises(TrainingError, match=rf"^--init .* is made for images of 14x14 and cannot take {said} \("):
        start.image_size(config, start.read_init(config))


@pytest.mark.parametrize(
    ("fields", "metadata", "given", "side"),
    [
        ({}, {}, None, 32),
        ({"pool_size": 7}, {}, None, 14),
        ({"stem_pool": True}, {}, None, 224),
        ({"stem_pool": True}, {"image_size": "48"}, None, 48),
        ({"stem_pool": True}, {"image_size": "48"}, 64, 64),
    ],
)
def test_a_folders_images_get_the_size_that_the_net_expects(saved, tmp_path, fields, metadata, given, side):
    config = Config(init=saved(metadata, **fields), dataset=str(tmp_path), image_size=given)
    assert start.image_size(config, start.read_init(config)) == side
    assert start.image_size(Config(dataset=str(tmp_path), image_size=given), None) == (given or 32)


def test_a_net_gets_the_values_that_it_was_trained_with(saved, small_dataset):
    told = {"mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.5, 0.6]", "channel_order": '"bgr"'}
    file = start.read_init(Config(init=saved(told)))
    assert file is not None
    dataset = start.as_expected(small_dataset, file)
    assert (dataset.mean, dataset.std, dataset.bgr) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), True)
    assert file.assumed == ""
    assert start.as_expected(small_dataset, None) is small_dataset

    file = start.read_init(Config(init=saved({"layout": "megvii"})))
    assert file is not None
    dataset = start.as_expected(small_dataset, file)
    assert (dataset.mean, dataset.std, dataset.bgr) == ((0.0,) * 3, (1 / 255,) * 3, True)
    assert file.assumed == "the paper authors', values from 0 to 255"


def test_a_channel_order_that_is_none_is_one_line(saved):
    with pytest.raises(TrainingError, match=r"^--init .*net.safetensors: its channel_order is not rgb or bgr; "):
        start.read_init(Config(init=saved({"channel_order": '"rbg"'})))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_net_is_given_images_that_it_takes(tmp_path, family):
    narrow = {"stage_widths": (8, 12, 16), "stage_blocks": (0, 0, 0), "stem_width": 4}
    fs.save(
        new_net(dataclasses.replace(fs.preset(family, 0.5), **narrow)),
        tmp_path / "net.safetensors",
        {"layout": family},
    )
    config = Config(init=tmp_path / "net.safetensors", dataset=str(tmp_path))
    file = start.read_init(config)
    assert file is not None
    small_stem = family in ("seed", "kuangliu", "chenyaofo", "weiaicunzai")
    assert start.image_size(config, file) == (32 if small_stem else 224)
    assert file.expected.bgr == (family in ("megvii", "nanodet", "fastestdet"))
