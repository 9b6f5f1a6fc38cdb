"""The nets of the foreign layouts: their key names, their sizes, and what each graph computes."""

import inspect
from collections import defaultdict

import pytest
import torch
from torch import nn

from torch_ref import chenyaofo, ericsun99, kuangliu, megvii, mmpretrain, seed, torchvision, weiaicunzai

LAYOUTS = {
    module.__name__.rpartition(".")[2]: module
    for module in (kuangliu, torchvision, chenyaofo, weiaicunzai, megvii, ericsun99, mmpretrain)
}
TINY: seed.Config = {"out_channels": (32, 48, 64, 40), "num_blocks": (1, 2, 1)}
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
IMAGE_SIZE = defaultdict(lambda: 64, kuangliu=32, megvii=224, ericsun99=224)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small nets gain nothing from more, and on a busy machine threads that wait for each other cost a lot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=LAYOUTS)
def name(request):
    return request.param


def randomised(net, seed=0):
    """``net`` in eval mode and double precision, its weights small and its BN unlike the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.3, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1, generator=generator)
    return net.double().eval()


def images(size, count=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def copy_in_order(source, target):
    """Tensor by tensor, no matter what they are called."""
    old, new = source.state_dict(), target.state_dict()
    assert [v.shape for v in old.values()] == [v.shape for v in new.values()]
    target.load_state_dict(dict(zip(new, old.values(), strict=True)))
    return target.double().eval()


@torch.no_grad()
def outputs(net, x):
    return net(x)


def differ(one, other):
    """By far more than rounding."""
    return (one - other).norm() > 0.1 * one.norm()


# Key names


def convs_and_bns(pairs, conv=("weight",)):
    return {f"{c}.{k}" for c, _ in pairs for k in conv} | {f"{b}.{k}" for _, b in pairs for k in BN}


# For each layout: (convolution, BN) of the stem, the first two blocks and the last convolution; the head's keys.
KEYS = {
    "kuangliu": (
        [
            ("conv1", "bn1"),
            ("layer1.0.conv1", "layer1.0.bn1"),
            ("layer1.0.conv2", "layer1.0.bn2"),
            ("layer1.0.conv3", "layer1.0.bn3"),
            ("layer1.0.conv4", "layer1.0.bn4"),
            ("layer1.0.conv5", "layer1.0.bn5"),
            ("layer1.1.conv1", "layer1.1.bn1"),
            ("layer1.1.conv2", "layer1.1.bn2"),
            ("layer1.1.conv3", "layer1.1.bn3"),
            ("conv2", "bn2"),
        ],
        {"linear.weight", "linear.bias"},
    ),
    "torchvision": (
        [
            ("conv1.0", "conv1.1"),
            ("stage2.0.branch1.0", "stage2.0.branch1.1"),
            ("stage2.0.branch1.2", "stage2.0.branch1.3"),
            ("stage2.0.branch2.0", "stage2.0.branch2.1"),
            ("stage2.0.branch2.3", "stage2.0.branch2.4"),
            ("stage2.0.branch2.5", "stage2.0.branch2.6"),
            ("stage2.1.branch2.0", "stage2.1.branch2.1"),
            ("stage2.1.branch2.3", "stage2.1.branch2.4"),
            ("stage2.1.branch2.5", "stage2.1.branch2.6"),
            ("conv5.0", "conv5.1"),
        ],
        {"fc.weight", "fc.bias"},
    ),
    "weiaicunzai": (
        [
            ("pre.0", "pre.1"),
            ("stage2.0.shortcut.0", "stage2.0.shortcut.1"),
            ("stage2.0.shortcut.2", "stage2.0.shortcut.3"),
            ("stage2.0.residual.0", "stage2.0.residual.1"),
            ("stage2.0.residual.3", "stage2.0.residual.4"),
            ("stage2.0.residual.5", "stage2.0.residual.6"),
            ("stage2.1.residual.0", "stage2.1.residual.1"),
            ("stage2.1.residual.3", "stage2.1.residual.4"),
            ("stage2.1.residual.5", "stage2.1.residual.6"),
            ("conv5.0", "conv5.1"),
        ],
        {"fc.weight", "fc.bias"},
    ),
    "megvii": (
        [
            ("first_conv.0", "first_conv.1"),
            ("features.0.branch_proj.0", "features.0.branch_proj.1"),
            ("features.0.branch_proj.2", "features.0.branch_proj.3"),
            ("features.0.branch_main.0", "features.0.branch_main.1"),
            ("features.0.branch_main.3", "features.0.branch_main.4"),
            ("features.0.branch_main.5", "features.0.branch_main.6"),
            ("features.1.branch_main.0", "features.1.branch_main.1"),
            ("features.1.branch_main.3", "features.1.branch_main.4"),
            ("features.1.branch_main.5", "features.1.branch_main.6"),
            ("conv_last.0", "conv_last.1"),
        ],
        {"classifier.0.weight"},
    ),
    "ericsun99": (
        [
            ("conv1.0", "conv1.1"),
            ("features.0.banch1.0", "features.0.banch1.1"),
            ("features.0.banch1.2", "features.0.banch1.3"),
            ("features.0.banch2.0", "features.0.banch2.1"),
            ("features.0.banch2.3", "features.0.banch2.4"),
            ("features.0.banch2.5", "features.0.banch2.6"),
            ("features.1.banch2.0", "features.1.banch2.1"),
            ("features.1.banch2.3", "features.1.banch2.4"),
            ("features.1.banch2.5", "features.1.banch2.6"),
            ("conv_last.0", "conv_last.1"),
        ],
        {"classifier.0.weight", "classifier.0.bias"},
    ),
    "mmpretrain": (
        [
            ("backbone.conv1.conv", "backbone.conv1.bn"),
            ("backbone.layers.0.0.branch1.0.conv", "backbone.layers.0.0.branch1.0.bn"),
            ("backbone.layers.0.0.branch1.1.conv", "backbone.layers.0.0.branch1.1.bn"),
            ("backbone.layers.0.0.branch2.0.conv", "backbone.layers.0.0.branch2.0.bn"),
            ("backbone.layers.0.0.branch2.1.conv", "backbone.layers.0.0.branch2.1.bn"),
            ("backbone.layers.0.0.branch2.2.conv", "backbone.layers.0.0.branch2.2.bn"),
            ("backbone.layers.0.1.branch2.0.conv", "backbone.layers.0.1.branch2.0.bn"),
            ("backbone.layers.0.1.branch2.1.conv", "backbone.layers.0.1.branch2.1.bn"),
            ("backbone.layers.0.1.branch2.2.conv", "backbone.layers.0.1.branch2.2.bn"),
            ("backbone.layers.3.conv", "backbone.layers.3.bn"),
        ],
        {"head.fc.weight", "head.fc.bias"},
    ),
}
KEYS["chenyaofo"] = KEYS["torchvision"]

# Where the blocks of the three stages begin in each layout, so that what is left can be counted off.
BLOCKS = {
    "kuangliu": [f"layer{s}.{b}." for s, n in ((1, 4), (2, 8), (3, 4)) for b in range(n)],
    "torchvision": [f"stage{s}.{b}." for s, n in ((2, 4), (3, 8), (4, 4)) for b in range(n)],
    "megvii": [f"features.{b}." for b in range(16)],
    "mmpretrain": [f"backbone.layers.{s}.{b}." for s, n in ((0, 4), (1, 8), (2, 4)) for b in range(n)],
}
BLOCKS |= {"chenyaofo": BLOCKS["torchvision"], "weiaicunzai": BLOCKS["torchvision"], "ericsun99": BLOCKS["megvii"]}


def test_keys(name):
    pairs, head = KEYS[name]
    spelt_out = convs_and_bns(pairs, ("weight", "bias") if name == "weiaicunzai" else ("weight",)) | head
    blocks = BLOCKS[name]
    first, second = ({k.removeprefix(b) for k in spelt_out if k.startswith(b)} for b in blocks[:2])
    expected = spelt_out | {
        b + key for i, b in enumerate(blocks) for key in (first if i in (0, 4, 12) else second)
    }  # stages start at blocks 0, 4 and 12
    assert set(LAYOUTS[name].ShuffleNetV2(0.5).state_dict()) == expected


def test_number_of_tensors(name):
    net = LAYOUTS[name].ShuffleNetV2(0.5)
    parameters = {"weiaicunzai": 170 + 56, "megvii": 170 - 1}.get(name, 170)
    assert len(list(net.parameters())) == parameters
    assert len(list(net.buffers())) == 168
    assert len(net.state_dict()) == parameters + 168


# Sizes


@pytest.mark.parametrize("module", [torchvision, mmpretrain], ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("net_size", "count"), [(0.5, 1_366_792), (1.0, 2_278_604), (1.5, 3_503_624), (2.0, 7_393_996)]
)
def test_published_parameter_counts(module, net_size, count):
    with torch.device("meta"):
        net = module.ShuffleNetV2(net_size, 1000)
    assert sum(p.numel() for p in net.parameters()) == count


def test_defaults(name):
    classes = {"kuangliu": 10, "chenyaofo": 10, "weiaicunzai": 100}.get(name, 1000)
    widths = (224 if name in ("kuangliu", "ericsun99") else 244, 488, 976, 2048)
    module = LAYOUTS[name]
    assert inspect.signature(module.ShuffleNetV2).parameters["num_classes"].default == classes
    with torch.device("meta"):
        state = module.ShuffleNetV2(2.0).state_dict()
    assert module.configs[2.0]["out_channels"] == widths
    pairs, head = KEYS[name]
    last_conv = pairs[-1][0]
    assert state[f"{last_conv}.weight"].shape == (2048, 976, 1, 1)
    assert state[next(k for k in head if k.endswith("weight"))].shape == (classes, 2048)
    basic_pointwise = pairs[6][0]
    assert state[f"{basic_pointwise}.weight"].shape == (widths[0] // 2, widths[0] // 2, 1, 1)


def test_weiaicunzai_widths():
    state = weiaicunzai.ShuffleNetV2(1.0).state_dict()
    assert state["stage2.0.residual.0.weight"].shape == (24, 24, 1, 1)
    assert state["stage2.0.residual.3.weight"].shape == (24, 1, 3, 3)
    assert state["stage2.0.residual.5.weight"].shape == (58, 24, 1, 1)
    assert state["stage2.0.shortcut.2.weight"].shape == (58, 24, 1, 1)
    assert state["pre.0.bias"].shape == (24,)


def test_megvii_widths():
    state = megvii.ShuffleNetV2(1.0).state_dict()
    assert state["features.0.branch_proj.2.weight"].shape == (24, 24, 1, 1)
    assert state["features.0.branch_main.0.weight"].shape == (58, 24, 1, 1)
    assert state["features.0.branch_main.3.weight"].shape == (58, 1, 3, 3)
    assert state["features.0.branch_main.5.weight"].shape == (116 - 24, 58, 1, 1)
    assert state["features.1.branch_main.0.weight"].shape == (58, 58, 1, 1)


# The constructor that all share


def test_config_stem_and_head(name):
    make = LAYOUTS[name].ShuffleNetV2
    torch.manual_seed(0)
    net = make(num_classes=7, config=TINY, stem_channels=8).eval()
    x = images(IMAGE_SIZE[name], 2).float()
    assert outputs(net, x).shape == (2, 7)

    backbone = make(num_classes=None, config=TINY, stem_channels=8).eval()
    head = KEYS[name][1]
    assert set(net.state_dict()) - set(backbone.state_dict()) == head
    backbone.load_state_dict({k: v for k, v in net.state_dict().items() if k not in head})
    features = outputs(backbone, x)
    assert features.shape == (2, 40)
    weight = net.state_dict()[next(k for k in head if k.endswith("weight"))]
    bias = next((net.state_dict()[k] for k in head if k.endswith("bias")), None)
    torch.testing.assert_close(outputs(net, x), nn.functional.linear(features, weight, bias))


def test_split_ratio(name):
    make = LAYOUTS[name].ShuffleNetV2
    if name == "megvii":
        with pytest.raises(ValueError, match="split_ratio"):
            make(config=TINY, split_ratio=0.25)
        return
    net = make(num_classes=7, config=TINY, split_ratio=0.3).eval()
    basic_pointwise = KEYS[name][0][6][0]
    assert net.state_dict()[f"{basic_pointwise}.weight"].shape == (32 - 9, 32 - 9, 1, 1)
    assert outputs(net, images(IMAGE_SIZE[name]).float()).shape == (1, 7)


def test_unknown_net_size(name):
    with pytest.raises(ValueError, match=r"one of 0\.5, 1\.0, 1\.5, 2\.0, not 0\.75"):
        LAYOUTS[name].ShuffleNetV2(0.75)


@pytest.mark.parametrize("widths", [(24, 48, 64, 40), (32, 49, 64, 40)], ids=["no wider than the stem", "odd"])
def test_megvii_refuses_widths(widths):
    with pytest.raises(ValueError, match="stage's width"):
        megvii.ShuffleNetV2(config={"out_channels": widths, "num_blocks": (1, 2, 1)})


def test_megvii_dropout():
    with torch.device("meta"):
        assert megvii.ShuffleNetV2(2.0).dropout.p == 0.2
        assert megvii.ShuffleNetV2(1.5).dropout.p == 0
        assert megvii.ShuffleNetV2(2.0, config=TINY).dropout.p == 0
        assert megvii.ShuffleNetV2(2.0, dropout=0.0).dropout.p == 0
        assert megvii.ShuffleNetV2(config=TINY, dropout=0.5).dropout.p == 0.5


@pytest.mark.parametrize("num_classes", [10, None])
@pytest.mark.parametrize(
    ("module", "size", "sizes"),
    [
        (kuangliu, 64, r"8x8.* 4x4 makes 2x2"),
        (kuangliu, 24, r"3x3.* 4x4 makes 0x0"),
        (megvii, 448, r"14x14.* 7x7 makes 2x2"),
        (ericsun99, 64, r"2x2.* 7x7 makes 0x0"),
    ],
)
def test_pooling_of_fixed_size(module, size, sizes, num_classes):
    net = module.ShuffleNetV2(num_classes=num_classes, config=TINY).eval()
    with pytest.raises(ValueError, match=sizes):
        outputs(net, images(size).float())


def test_no_relu_in_place(name):
    assert not any(getattr(module, "inplace", False) for module in LAYOUTS[name].ShuffleNetV2(0.5).modules())


# What the graphs compute


def test_seed_weights_fit_kuangliu_but_compute_something_else():
    old = randomised(seed.ShuffleNetV2(0.5))
    new = copy_in_order(old, kuangliu.ShuffleNetV2(0.5))
    x = images(32)
    assert differ(outputs(old, x), outputs(new, x))

    # With its down blocks' ReLUs put in, the seed is kuangliu's net.
    for layer in (old.layer1, old.layer2, old.layer3):
        for bn in map(layer.get_submodule, ("0.branch1.3", "0.branch2.1", "0.branch2.5")):
            bn.register_forward_hook(lambda module, inputs, output: output.relu())
    torch.testing.assert_close(outputs(old, x), outputs(new, x))


def test_torchvision_and_chenyaofo_differ_in_nothing_but_outputs():
    one = randomised(torchvision.ShuffleNetV2(0.5, 10))
    other = chenyaofo.ShuffleNetV2(0.5, 10)
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    other.load_state_dict(one.state_dict())
    other = other.double().eval()
    x = images(64)
    assert differ(outputs(one, x), outputs(other, x))


@pytest.mark.parametrize("module", [ericsun99, mmpretrain], ids=lambda module: module.__name__)
def test_same_graph_as_torchvision(module):
    one = randomised(torchvision.ShuffleNetV2(num_classes=10, config=TINY))
    other = copy_in_order(one, module.ShuffleNetV2(num_classes=10, config=TINY))
    x = images(224)
    torch.testing.assert_close(outputs(other, x), outputs(one, x))


def test_kuangliu_is_the_same_graph_as_chenyaofo():
    one = randomised(chenyaofo.ShuffleNetV2(config=TINY))
    other = copy_in_order(one, kuangliu.ShuffleNetV2(config=TINY))
    x = images(32)
    torch.testing.assert_close(outputs(other, x), outputs(one, x))


def test_weiaicunzai_is_chenyaofo_without_biases_and_stem_relu():
    """At 0.5: where a down block's input is half as wide as its output, weiaicunzai's right branch is like any."""
    one = randomised(weiaicunzai.ShuffleNetV2(0.5))
    state = {key: value.clone() for key, value in one.state_dict().items()}
    for conv in [name for name, module in one.named_modules() if isinstance(module, nn.Conv2d)]:
        sequential, _, index = conv.rpartition(".")
        state[f"{sequential}.{int(index) + 1}.running_mean"] -= state.pop(f"{conv}.bias")
    names = {"pre.": "conv1.", ".shortcut.": ".branch1.", ".residual.": ".branch2."}
    for old, new in names.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    other = chenyaofo.ShuffleNetV2(0.5, 100).double().eval()  # double first: the folded means are no float32 numbers
    other.load_state_dict(state)
    other.conv1[2] = nn.Identity()
    x = images(32)
    torch.testing.assert_close(outputs(other, x), outputs(one, x))


def lifetimes(half, num_blocks, split):
    """Which channels, named by (branch, index in it), each basic block of a stage takes in, and the final order.

    ``split`` says where the concatenated channels of a block go in the next one: (passed, taken).
    """
    channels = [(side, i) for side in ("left", 0) for i in range(half)]
    taken_in = []
    for block in range(1, num_blocks + 1):
        passed, taken = split(channels)
        taken_in.append(taken)
        channels = passed + [(block, i) for i in range(half)]
    return taken_in, channels


def split_even_odd(channels):
    return channels[0::2], channels[1::2]


def shuffled(channels):
    half = len(channels) // 2
    return [c for pair in zip(channels[:half], channels[half:], strict=True) for c in pair]


def split_halves(channels):
    channels = shuffled(channels)
    return channels[: len(channels) // 2], channels[len(channels) // 2 :]


def megvii_as_torchvision(state, config):
    """Rename and permute megvii's tensors so that torchvision's graph gives the same scores, fc.bias aside.

    A channel is born in one branch and taken in by one later block, or lives to the end of its stage. Both graphs
    have equally many channels for each pair of the two, so they can be matched.
    """
    new = {}

    def put(target, source, outs=None, ins=None):
        for key, value in state.items():
            if key.startswith(f"{source}."):
                value = value if outs is None else value[outs] if value.ndim else value
                value = value if ins is None or value.ndim != 4 else value[:, ins]
                new[target + key.removeprefix(source)] = value

    put("conv1", "first_conv")
    put("fc", "classifier.0")
    index, order = 0, None  # of the channels that the stage takes in: torchvision's in terms of megvii's
    for stage, (width, num_blocks) in enumerate(zip(config["out_channels"], config["num_blocks"], strict=False), 2):
        half = width // 2
        theirs, their_end = lifetimes(half, num_blocks, split_even_odd)
        ours, our_end = lifetimes(half, num_blocks, split_halves)
        our_end = shuffled(our_end)
        match = {}
        for their_group, our_group in zip([*theirs, their_end], [*ours, our_end], strict=True):
            for birth in ("left", *range(num_blocks + 1)):
                their_ids, our_ids = ([c for c in g if c[0] == birth] for g in (their_group, our_group))
                match |= dict(zip(our_ids, their_ids, strict=True))

        def born(birth, half=half, match=match):
            return [match[birth, i][1] for i in range(half)]

        block, down = f"stage{stage}.0", f"features.{index}"
        put(f"{block}.branch1.0", f"{down}.branch_proj.0", outs=order)
        put(f"{block}.branch1.1", f"{down}.branch_proj.1", outs=order)
        put(f"{block}.branch1.2", f"{down}.branch_proj.2", outs=born("left"), ins=order)
        put(f"{block}.branch1.3", f"{down}.branch_proj.3", outs=born("left"))
        for b in range(num_blocks + 1):
            block, main = f"stage{stage}.{b}.branch2", f"features.{index + b}.branch_main"
            ins = order if b == 0 else [theirs[b - 1].index(match[c]) for c in ours[b - 1]]
            put(f"{block}.0", f"{main}.0", ins=ins)
            for i in (1, 3, 4):
                put(f"{block}.{i}", f"{main}.{i}")
            put(f"{block}.5", f"{main}.5", outs=born(b))
            put(f"{block}.6", f"{main}.6", outs=born(b))
        order = [their_end.index(match[c]) for c in our_end]
        index += num_blocks + 1
    put("conv5.0", "conv_last.0", ins=order)
    put("conv5.1", "conv_last.1")
    return new


def test_megvii_is_a_channel_permutation_of_torchvision_at_half_width():
    one = randomised(megvii.ShuffleNetV2(0.5, 10))
    state = megvii_as_torchvision(one.state_dict(), megvii.configs[0.5])
    other = torchvision.ShuffleNetV2(0.5, 10)
    assert other.fc is not None
    other.load_state_dict(state | {"fc.bias": torch.zeros(10)})
    x = images(224)
    torch.testing.assert_close(outputs(other.double().eval(), x), outputs(one, x))
