"""The nets of further layouts: packages and detectors. Their key names, sizes, and graphs by nets tested elsewhere."""

import re

import pytest
import torch
from torch import nn

from torch_ref import (
    birder,
    fastestdet,
    kuangliu,
    megvii,
    nanodet,
    openpifpaf,
    pytorchcv,
    pytorchcv_b,
    super_gradients,
    torchvision,
    yolov5lite,
)
from torch_ref.randomise import randomise
from torch_ref.seed import Config

TINY: Config = {"out_channels": (32, 48, 64, 40), "num_blocks": (1, 2, 1)}
ENDS_EARLY: Config = {"out_channels": (32, 48, 64, 0), "num_blocks": (1, 2, 1)}
BACKBONES = [nanodet, fastestdet, yolov5lite]


def module_name(module) -> str:
    return module.__name__.rpartition(".")[2]


def images(size, count=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def with_tensors_of(source, target):
    """``target`` in eval mode and double precision, with the tensors of ``source`` one after the other."""
    old, new = source.state_dict(), target.state_dict()
    assert [tensor.shape for tensor in old.values()] == [tensor.shape for tensor in new.values()]
    target.load_state_dict(dict(zip(new, old.values(), strict=True)))
    return target.double().eval()


@torch.no_grad()
def outputs(net, x):
    return net.double().eval()(x)


# For each: convolutions and batch normalisations of the stem, the first block, the second and the last convolution.
CONVOLUTIONS = {
    birder: "stem.0 body.stage2.0.branch1.0 body.stage2.0.branch1.2.0 body.stage2.0.branch2.0.0 "
    "body.stage2.0.branch2.1 body.stage2.0.branch2.3.0 body.stage2.1.branch2.0.0 features.0.0",
    pytorchcv: "features.init_block.conv.conv features.stage1.unit1.compress_conv1 features.stage1.unit1.dw_conv2 "
    "features.stage1.unit1.expand_conv3 features.stage1.unit1.dw_conv4 features.stage1.unit1.expand_conv5 "
    "features.stage2.unit8.compress_conv1 features.final_block.conv",
    pytorchcv_b: "features.init_block.conv.conv features.stage1.unit1.conv1.conv features.stage1.unit1.dconv.conv "
    "features.stage1.unit1.conv2.conv features.stage1.unit1.shortcut_dconv.conv "
    "features.stage1.unit1.shortcut_conv.conv features.stage3.unit4.conv2.conv features.final_block.conv",
    super_gradients: "conv1.0 layer2.0.branch1.0 layer2.0.branch1.2 layer2.0.branch2.0 layer2.0.branch2.3 "
    "layer2.0.branch2.5 layer2.1.branch2.0 layer4.3.branch2.5 conv5.0",
    openpifpaf: "input_block.0.0 stage2.0.branch1.0 stage2.0.branch1.2 stage2.0.branch2.0 stage2.0.branch2.3 "
    "stage4.3.branch2.5 conv5.0",
    nanodet: "conv1.0 stage2.0.branch1.0 stage2.0.branch1.2 stage2.0.branch2.0 stage2.0.branch2.3 stage4.3.branch2.5",
    fastestdet: "first_conv.0 stage2.0.branch_main.0 stage2.0.branch_main.3 stage2.0.branch_main.5 "
    "stage2.0.branch_proj.0 stage2.0.branch_proj.2 stage4.3.branch_main.5",
    yolov5lite: "model.0.conv.0 model.1.branch1.0 model.1.branch1.2 model.1.branch2.0 model.1.branch2.3 "
    "model.1.branch2.5 model.2.0.branch2.0 model.4.6.branch2.5 model.6.2.branch2.3",
}


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=module_name)
def test_keys(module):
    names = module.ShuffleNetV2(0.5).state_dict()
    assert {f"{name}.weight" for name in CONVOLUTIONS[module].split()} <= set(names)
    head = {birder: 2, pytorchcv: 2, pytorchcv_b: 2, super_gradients: 2, openpifpaf: 0}.get(module)
    assert len(names) == (
        330 if head is None else 336 + head
    )  # 56 convolutions, or without the last 55, with 5 of a BN each


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        (birder, (1_366_792, 2_278_604, 3_503_624, 7_393_996)),
        (pytorchcv, (1_366_792, 2_278_604, 4_406_098, 7_601_686)),
        (pytorchcv_b, (1_366_792, 2_279_760, 4_410_194, 7_611_290)),
    ],
    ids=["birder", "pytorchcv", "pytorchcv_b"],
)
def test_published_parameter_counts(module, counts):
    for size, count in zip((0.5, 1.0, 1.5, 2.0), counts, strict=True):
        with torch.device("meta"):
            net = module.ShuffleNetV2(size)
        assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("module", [birder, super_gradients], ids=module_name)
def test_some_are_torchvisions_graph(module):
    net = randomise(module.ShuffleNetV2(config=TINY, num_classes=7))
    torch.testing.assert_close(
        outputs(net, images(97)),
        outputs(with_tensors_of(net, torchvision.ShuffleNetV2(config=TINY, num_classes=7)), images(97)),
    )


def test_openpifpaf_with_small_kernels_is_torchvisions_graph_without_a_max_pool():
    net = randomise(openpifpaf.ShuffleNetV2(config=TINY, down_kernel=3, basic_kernel=3))
    other = torchvision.ShuffleNetV2(config=TINY, num_classes=None, stem_pool=False)
    for normalisation in (module for module in other.modules() if isinstance(module, nn.BatchNorm2d)):
        normalisation.eps = 1e-4
    torch.testing.assert_close(outputs(net, images(97)), outputs(with_tensors_of(net, other), images(97)))


def test_openpifpafs_kernels_of_5x5_keep_the_sizes_of_maps():
    net = openpifpaf.ShuffleNetV2(config=TINY)
    depthwise = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 2 * 3 + 4
    assert {module.kernel_size for module in depthwise} == {(5, 5)}
    assert net.stage2(torch.zeros(1, 24, 33, 20)).shape == (1, 32, 17, 10)


def test_kuanglius_stem_may_be_of_1x1():
    net = kuangliu.ShuffleNetV2(config=TINY, stem_kernel=1)
    assert net.conv1(torch.zeros(1, 3, 9, 8)).shape == (1, 24, 9, 8)
    assert net.conv1.weight.shape == (24, 3, 1, 1)


def in_torchvisions_names(name):
    """Of pytorchcv's names."""
    for part, own in {
        "compress_conv1": "branch2.0", "compress_bn1": "branch2.1", "dw_conv2": "branch2.3", "dw_bn2": "branch2.4",
        "expand_conv3": "branch2.5", "expand_bn3": "branch2.6", "dw_conv4": "branch1.0", "dw_bn4": "branch1.1",
        "expand_conv5": "branch1.2", "expand_bn5": "branch1.3", "features.init_block.conv.conv": "conv1.0",
        "features.init_block.conv.bn": "conv1.1", "features.final_block.conv": "conv5.0",
        "features.final_block.bn": "conv5.1", "output": "fc",
    }.items():  # fmt: skip
        name = name.replace(part, own)
    place = re.match(r"features\.stage(\d)\.unit(\d+)", name)
    return f"stage{int(place[1]) + 1}.{int(place[2]) - 1}{name[place.end() :]}" if place else name


def test_pytorchcv_is_torchvisions_graph_but_for_its_max_pool():
    net = randomise(pytorchcv.ShuffleNetV2(config=TINY, num_classes=7))
    other = torchvision.ShuffleNetV2(config=TINY, num_classes=7)
    other.load_state_dict({in_torchvisions_names(name): tensor for name, tensor in net.state_dict().items()})
    other.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    torch.testing.assert_close(outputs(net, images(201)), outputs(other, images(201)))


@pytest.mark.parametrize("shuffle", ["after", "reverse"])
def test_pytorchcv_b_shuffles_both_ways(shuffle):
    net = pytorchcv_b.ShuffleNetV2(config=TINY, shuffle=shuffle)
    channel_shuffle = net.get_submodule("features.stage1.unit1.shuffle")
    channels = torch.arange(32.0).reshape(1, 32, 1, 1)
    expected = channels.reshape(2, 16).T if shuffle == "after" else channels.reshape(16, 2).T
    assert torch.equal(channel_shuffle(channels).flatten(), expected.flatten())


@pytest.mark.parametrize("module", [pytorchcv, pytorchcv_b], ids=module_name)
def test_pytorchcv_takes_maps_of_7x7_alone(module):
    with pytest.raises(ValueError, match="8x8 and must be 7x7"):
        outputs(module.ShuffleNetV2(config=TINY, num_classes=None), images(256))


def test_nanodet_with_relus_is_torchvisions_graph():
    net = randomise(nanodet.ShuffleNetV2(config=TINY, negative_slope=0))
    other = torchvision.ShuffleNetV2(config=TINY, num_classes=None)
    torch.testing.assert_close(outputs(net, images(97)), outputs(with_tensors_of(net, other), images(97)))


def test_nanodets_activation_is_leaky():
    net = nanodet.ShuffleNetV2(config=TINY)
    activations = [module for module in net.modules() if isinstance(module, nn.ReLU | nn.LeakyReLU)]
    assert {(type(module), module.negative_slope) for module in activations} == {(nn.LeakyReLU, 0.1)}
    assert len(activations) == 2 + 3 * 3 + 2 * 4  # stem, last; three a down block, two a basic block


def test_fastestdet_has_the_paper_authors_blocks():
    net = randomise(fastestdet.ShuffleNetV2(config=ENDS_EARLY)).double().eval()
    other = megvii.ShuffleNetV2(config=TINY, num_classes=None).double().eval()
    tensors = list(net.state_dict().values())
    other.load_state_dict(dict(zip(other.state_dict(), tensors, strict=False)), strict=False)
    with torch.no_grad():
        last = other.features(other.maxpool(other.first_conv(images(97))))
    torch.testing.assert_close(outputs(net, images(97)), last.mean((2, 3)))


def test_yolov5lite_is_torchvisions_graph_with_another_epsilon():
    net = randomise(yolov5lite.ShuffleNetV2(config=ENDS_EARLY, stem_channels=24))
    other = nanodet.ShuffleNetV2(config=ENDS_EARLY, negative_slope=0)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    torch.testing.assert_close(outputs(net, images(97)), outputs(with_tensors_of(net, other), images(97)))


@pytest.mark.parametrize("module", BACKBONES, ids=module_name)
def test_backbones_give_detectors_the_map_of_every_stage(module):
    net = module.ShuffleNetV2(config=ENDS_EARLY, num_classes=3).double().eval()
    with torch.no_grad():
        maps = net.stages(images(97))
    assert [tuple(each.shape[1:]) for each in maps] == [(32, 13, 13), (48, 7, 7), (64, 4, 4)]
    assert outputs(net, images(97)).shape == (1, 3)


@pytest.mark.parametrize("module", [fastestdet, yolov5lite], ids=module_name)
def test_backbones_without_a_last_convolution_refuse_one(module):
    with pytest.raises(ValueError, match="the last width must be 0, not 40"):
        module.ShuffleNetV2(config=TINY)


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=module_name)
def test_unknown_net_size(module):
    with pytest.raises(ValueError, match=r"one of 0\.5, 1\.0, 1\.5, 2\.0, not 0\.75"):
        module.ShuffleNetV2(0.75)
