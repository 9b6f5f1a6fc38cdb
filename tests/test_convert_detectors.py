"""``python -m convert`` on detectors' files: the backbone is taken out, its maps are those that a detector reads."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert_tools import assert_same_tensors, random_state_dict, run_convert, small_architecture
from flax import nnx
from parity_tools import random_images, to_nchw

import convert
import flax_shufflenet as fs
from convert import mapping
from convert.contents.select import find_net
from convert.errors import ConvertError
from convert.layouts import LAYOUTS
from convert.proof.verify import FLOAT64_BAR, relative_difference
from flax_shufflenet.weights import cast_floats, from_arrays
from tests.net_tools import new_net
from torch_ref import fastestdet, nanodet, yolov5lite

DETECTORS = ("nanodet", "fastestdet", "yolov5lite")


def backbone(layout: str, **fields: Any) -> dict[str, torch.Tensor]:
    return random_state_dict(layout, small_architecture(layout, num_classes=0, **fields))


def detector(layout: str, **fields: Any) -> dict[str, torch.Tensor]:
    """What a detector's state_dict holds: its backbone, and other tensors around it."""
    if layout == "yolov5lite":
        return {**backbone(layout, **fields), "model.7.conv.weight": torch.ones(3, 128, 1, 1)}
    around = {"nanodet": ("fpn.lateral.conv.weight", "head.gfl_cls.0.weight"), "fastestdet": ("SPP.S1.0.weight",)}
    inside = {f"backbone.{name}": tensor for name, tensor in backbone(layout, **fields).items()}
    return {**inside, **{name: torch.ones(3, 128, 1, 1) for name in around[layout]}}


def test_a_detectors_backbone_is_taken_out_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, blocks = "yolov5lite", (1, 0, 1)
    torch.save(detector(layout, stage_blocks=blocks), tmp_path / "net.pth")
    outcome = run_convert(capsys, tmp_path / "net.pth")
    assert outcome.code == 1
    assert "belongs to no part of the net" in outcome.err
    assert "--backbone" in outcome.err
    outcome = run_convert(capsys, tmp_path / "net.pth", "--backbone")
    assert outcome.code == 0, outcome.err
    assert "128, no last convolution" in outcome.out
    model = fs.load(tmp_path / "net.safetensors")
    assert model.architecture == small_architecture(layout, num_classes=0, stage_blocks=blocks)
    outcome = run_convert(capsys, tmp_path / "net.safetensors", "-o", tmp_path / "back.pth")
    assert outcome.code == 0, outcome.err
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same_tensors(back, backbone(layout, stage_blocks=blocks))


@pytest.mark.parametrize("layout", DETECTORS)
def test_stage_features_are_the_maps_of_the_detectors_own_backbone(layout: str, float64: None) -> None:
    found = find_net(detector(layout), backbone=True)
    assert found.architecture == small_architecture(layout, num_classes=0)
    arrays = cast_floats(mapping.to_arrays(found.layout, found.architecture, found.tensors), np.float64)
    model = from_arrays(found.architecture, arrays, dtype=jnp.float64)
    net = LAYOUTS[layout].build_reference(model.architecture).double().eval()
    net.load_state_dict(backbone(layout))
    images = random_images(2, 97, 141)
    with torch.no_grad():
        assert isinstance(net, (nanodet.ShuffleNetV2, fastestdet.ShuffleNetV2, yolov5lite.ShuffleNetV2))
        theirs = net.stages(to_nchw(images))
    ours = nnx.jit(lambda model, images: model.stage_features(images))(model, jnp.asarray(images))
    assert len(ours) == len(theirs) == 3
    for own, their in zip(ours, theirs, strict=True):
        assert relative_difference(np.asarray(own), their.numpy().transpose(0, 2, 3, 1)) <= FLOAT64_BAR


def slope(tensors: dict[str, torch.Tensor], **options: Any) -> tuple[float, str]:
    net = find_net(tensors, **options)
    return net.architecture.negative_slope, next(note for note in net.notes if note.startswith("rectifier"))


def test_nanodets_activation_is_given_or_assumed_and_the_report_says_which() -> None:
    assert slope(detector("nanodet"), backbone=True)[0] == 0.1
    assert "NanoDet's published detectors have it" in slope(detector("nanodet"), backbone=True)[1]
    assert slope(backbone("nanodet")) == (
        0.0,
        "rectifier: ReLU, assumed for a lone backbone; NanoDet's detectors have leaky_relu; the tensors cannot tell, "
        "nor do its running statistics, which fit neither (explained: 0%), as if its layers computed something else, "
        "and the wrong one costs accuracy: --activation leaky_relu if it is low",
    )
    assert slope(backbone("nanodet"), activation="leaky_relu")[0] == 0.1
    assert slope(backbone("nanodet", last_width=40))[0] == 0.1


def test_nanodets_averaged_weights_stand_beside_the_others() -> None:
    both = {f"{prefix}.{name}": t for prefix in ("model", "avg_model") for name, t in detector("nanodet").items()}
    net = find_net({"state_dict": both, "epoch": 3}, backbone=True, use_ema=True)
    assert "found at: state_dict.avg_model.backbone" in net.notes


def test_a_torchvision_net_without_its_last_convolution_converts_by_itself() -> None:
    whole = random_state_dict("torchvision", small_architecture("torchvision"))
    cut = {name: tensor for name, tensor in whole.items() if not name.startswith(("conv5.", "fc."))}
    net = find_net(cut)
    assert net.layout.name == "nanodet"
    assert_same_tensors(net.tensors, cut)
    assert "no head: the net returns its pooled features" in net.notes


def test_pytorchcvs_other_shuffle_is_given() -> None:
    tensors = random_state_dict("pytorchcv_b", small_architecture("pytorchcv_b", stage_blocks=(1, 0, 0)))
    assert find_net(tensors).architecture.shuffle == "after"
    model, report = convert.load_torch(tensors, shuffle="reverse")
    assert model.architecture.shuffle == "reverse"
    assert "shuffle: the other way round, as given by --shuffle" in report.notes
    assert_same_tensors(convert.to_torch(model), tensors)


@pytest.mark.parametrize(
    ("options", "whose"),
    [(("--activation", "relu"), "NanoDet's backbones"), (("--shuffle", "reverse"), "pytorchcv's shufflenetv2b")],
)
def test_options_that_say_nothing_about_a_net_are_refused(
    options: tuple[str, str], whose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(random_state_dict("seed", small_architecture("seed")), tmp_path / "net.pth")
    outcome = run_convert(capsys, tmp_path / "net.pth", *options)
    assert outcome.code == 1
    assert f"{options[0]} is for {whose}; this is a seed checkpoint, leave it out" in outcome.err


def test_what_a_layout_cannot_hold_is_said() -> None:
    early = new_net(small_architecture("nanodet"))
    with pytest.raises(convert.ConvertError, match="ends after its last stage"):
        convert.to_torch(early, "torchvision")
    with pytest.raises(convert.ConvertError, match=r"LeakyReLUs of slope 0\.1, that layout's have ReLUs"):
        convert.to_torch(early, "yolov5lite")
    whole = new_net(small_architecture("torchvision"))
    with pytest.raises(convert.ConvertError, match="a last convolution follows"):
        convert.to_torch(whole, "yolov5lite")
    with pytest.raises(
        convert.ConvertError,
        match="its stem has stride 2 and a max-pool, that layout's stride 2 and a max-pool without padding",
    ):
        convert.to_torch(whole, "pytorchcv")


def test_fine_tuned_backbones_have_a_classifier_of_their_own() -> None:
    tensors = random_state_dict("fastestdet", small_architecture("fastestdet", num_classes=5))
    assert tensors["classifier.weight"].shape == (5, 128)
    assert find_net(tensors).architecture == small_architecture("fastestdet", num_classes=5)


def test_the_epsilon_is_given_or_said_to_be_assumed() -> None:
    tensors = random_state_dict("seed", small_architecture("seed"))
    (assumed,) = (note for note in find_net(tensors).notes if note.startswith("epsilon: "))
    assert assumed == "epsilon: 1e-05, assumed, as usual in this layout; the tensors cannot tell (--epsilon)"
    net = find_net(tensors, epsilon=1e-4)
    assert net.architecture.bn_epsilon == 1e-4
    assert "epsilon: 0.0001, as given by --epsilon" in net.notes
    with pytest.raises(ConvertError, match="--epsilon must be between 0 and 1, such as 1e-5, not -1"):
        find_net(tensors, epsilon=-1.0)


def test_a_pose_nets_backbone_has_kernels_of_its_own() -> None:
    architecture = small_architecture("openpifpaf", 0, down_kernel=3)
    tensors = {f"base_net.{name}": tensor for name, tensor in random_state_dict("openpifpaf", architecture).items()}
    heads = {"head_nets.0.conv.weight": torch.ones(340, 40, 1, 1), "head_nets.0.conv.bias": torch.ones(340)}
    with pytest.raises(ConvertError, match=r"head_nets\.0\.conv"):
        find_net(tensors | heads)
    net = find_net(tensors | heads, backbone=True)
    assert (net.layout.name, net.architecture) == ("openpifpaf", architecture)


def test_a_stem_of_1x1_is_that_of_copies_for_distillation() -> None:
    architecture = small_architecture("kuangliu", 100, stem_kernel=1)
    net = find_net({"model": random_state_dict("kuangliu", architecture), "epoch": 240})
    assert net.architecture == architecture
