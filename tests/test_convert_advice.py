"""What a refusal says is so, and what it advises works: each file is made with PyTorch, refused, mended as the refusal
says, and converted."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from checkpoint_tools import assert_same, fresh_net, refusal, small_state_dict, take, write
from convert_tools import small_architecture
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convert.layouts import LAYOUTS


def layers(net: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, kind)]


NORMS: dict[str, tuple[Callable[[nn.Module], object], str, Callable[[nn.Module], object]]] = {
    "weight_norm": (
        nn.utils.weight_norm,
        "weight normalisation: {0}.weight is stored as {0}.weight_g and {0}.weight_v, and so are {1} more; call "
        "torch.nn.utils.remove_weight_norm(layer) ",
        nn.utils.remove_weight_norm,
    ),
    "parametrizations.weight_norm": (
        parametrizations.weight_norm,
        "weight normalisation: {0}.weight is stored as {0}.parametrizations.weight.original0 and "
        "{0}.parametrizations.weight.original1, and so are {1} more; call "
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') ",
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "spectral_norm": (
        nn.utils.spectral_norm,
        "spectral normalisation: {0}.weight is stored as {0}.weight_orig and {0}.weight_u, and so are {1} more; call "
        "torch.nn.utils.remove_spectral_norm(layer) ",
        nn.utils.remove_spectral_norm,
    ),
    "parametrizations.spectral_norm": (
        parametrizations.spectral_norm,
        "spectral normalisation: {0}.weight is stored as {0}.parametrizations.weight.original and "
        "{0}.parametrizations.weight.0._u, and so are {1} more; call "
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') ",
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("layout", ["torchvision", "seed", "pytorchcv"])
@pytest.mark.parametrize("norm", NORMS)
def test_normalised_weights_are_named_and_can_be_brought_back(norm: str, layout: str, tmp_path: Path) -> None:
    apply, said, undo = NORMS[norm]
    net = fresh_net(layout)
    convolutions = layers(net, nn.Conv2d)
    for layer in convolutions:
        apply(layer)
    reason = refusal(write(tmp_path / "net.pt", {"state_dict": net.state_dict()}))
    first = next(name for name, module in net.named_modules() if module is convolutions[0])
    assert said.format(first, len(convolutions) - 1) in reason
    for layer in convolutions:
        undo(layer)
    found = take(write(tmp_path / "plain.pt", net.state_dict()))
    assert_same(found.tensors, net.state_dict())


def test_a_normalised_head_can_be_left_out(tmp_path: Path) -> None:
    net = fresh_net("torchvision")
    parametrizations.weight_norm(net.get_submodule("fc"))
    path = write(tmp_path / "net.pt", net.state_dict())
    assert "weight normalisation: fc.weight is stored as" in refusal(path)
    found = take(path, backbone=True)
    assert found.architecture.num_classes == 0
    assert not any("parametrizations" in name for name in found.tensors)


def fold(net: nn.Module, layout: str, names: Iterable[str] | None = None) -> nn.Module:
    """The net with its batch normalisations, or those of the convolutions named, folded into the convolutions."""
    for part in LAYOUTS[layout].parts_of(small_architecture(layout)):
        if names is None or part.conv in names:
            conv, bn = net.get_submodule(part.conv), net.get_submodule(part.bn)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(bn, nn.BatchNorm2d)
            net.set_submodule(part.conv, fuse_conv_bn_eval(conv, bn))
            net.set_submodule(part.bn, nn.Identity())
    return net


@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folded_batch_normalisations_are_named(layout: str, backbone: bool, tmp_path: Path) -> None:
    net = fold(fresh_net(layout), layout)
    first = LAYOUTS[layout].root + LAYOUTS[layout].stem[0]
    for number, content in enumerate((net.state_dict(), net)):
        reason = refusal(write(tmp_path / f"{number}.pt", content), backbone=backbone)
        assert reason.startswith(
            f"its batch normalisations are folded into its convolutions ({first} has a bias and no"
        )
        assert reason.endswith("convert the net as it was before")


def test_one_folded_batch_normalisation_is_named(tmp_path: Path) -> None:
    net = fold(fresh_net("seed"), "seed", ["layer2.1.conv2"])
    assert "layer2.1.conv2 has a bias and no batch normalisation)" in refusal(
        write(tmp_path / "a.pt", net.state_dict())
    )


def test_nets_without_batch_normalisation_or_running_statistics(tmp_path: Path) -> None:
    net = fresh_net("torchvision")
    path = write(tmp_path / "net.pt", dict(net.named_parameters()))
    assert "conv1.1.running_mean and so on); if its parameters alone were saved, save its state_dict()" in refusal(path)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(name, nn.GroupNorm(2, module.num_features))
    assert "as GroupNorm does, it cannot be converted" in refusal(write(tmp_path / "gn.pt", net.state_dict()))
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.GroupNorm):
            net.set_submodule(name, nn.Identity())
    assert "no batch normalisations (conv1.1 and so on)" in refusal(write(tmp_path / "none.pt", net.state_dict()))


def sequential(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))


HEADS: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "two linear layers": (sequential, "its head has several layers ({head}.0; {head}.3), a "),
    "a batch normalisation": (
        lambda features: nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, 3)),
        "its head has several layers ({head}.0; {head}.1), a ",
    ),
    "a convolution of 3x3": (
        lambda features: nn.Conv2d(features, 3, 3),
        "{head}.weight has shape [3, 40, 3, 3], a linear layer's has 2 numbers; take the net without its head with ",
    ),
    "other features": (lambda features: nn.Linear(41, 10), "{head}.weight has shape [10, 41], not [10, 40]; take the "),
}


@pytest.mark.parametrize("layout", ["torchvision", "seed", "kuangliu", "weiaicunzai", "megvii", "mmpretrain"])
@pytest.mark.parametrize("head", HEADS)
def test_other_heads_are_named_and_can_be_left_out(head: str, layout: str, tmp_path: Path) -> None:
    make, said = HEADS[head]
    net = fresh_net(layout)
    name = LAYOUTS[layout].head
    net.set_submodule(name, make(40))
    path = write(tmp_path / "net.pt", net.state_dict())
    reason = refusal(path)
    assert said.format(head=name) in reason
    assert "--backbone" in reason
    found = take(path, backbone=True)
    own = {key: tensor for key, tensor in net.state_dict().items() if not key.startswith(f"{name}.")}
    assert_same(found.tensors, own)
    assert any(note.startswith("left out: ") and f"{name}." in note for note in found.notes)


def test_a_head_that_is_a_1x1_convolution_can_be_made_a_linear_layer(tmp_path: Path) -> None:
    net = fresh_net("chenyaofo")
    net.fc = classifier = nn.Conv2d(40, 10, 1)
    tensors = net.state_dict()
    assert "save weight.flatten(1) in its place, which computes the same, or take" in refusal(
        write(tmp_path / "net.pt", tensors)
    )
    mended = take(write(tmp_path / "mended.pt", {**tensors, "fc.weight": tensors["fc.weight"].flatten(1)}))
    features = torch.randn(2, 40, 3, 3)
    linear = nn.functional.linear(features.mean((2, 3)), mended.tensors["fc.weight"], mended.tensors["fc.bias"])
    torch.testing.assert_close(linear, classifier(features).mean((2, 3)))


class SqueezeAndExcitation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, 2), nn.ReLU(), nn.Linear(2, width))


@pytest.mark.parametrize("backbone", [False, True])
def test_layers_inside_the_net_are_named_for_what_they_are(backbone: bool, tmp_path: Path) -> None:
    with_se, with_biases, observed = (fresh_net("torchvision") for _ in range(3))
    with_se.get_submodule("stage2.1").se = SqueezeAndExcitation(32)
    with_biases.get_submodule("conv1.0").bias = nn.Parameter(torch.zeros(8))
    observed.get_submodule("conv1").add_module("activation_post_process", nn.BatchNorm2d(8))
    for net, said in (
        (with_se, "squeeze-and-excitation layers that a torchvision or chenyaofo ShuffleNetV2 does not have"),
        (with_biases, "biases of convolutions that a torchvision or chenyaofo ShuffleNetV2 does not have"),
        (observed, "it was prepared for quantisation; save the float net's state_dict() as it was before"),
    ):
        reason = refusal(write(tmp_path / "net.pt", net.state_dict()), backbone=backbone)
        assert said in reason
        assert "--backbone" not in reason


def test_layers_outside_the_net_are_left_to_the_user(tmp_path: Path) -> None:
    """Nothing tells where a layer of a name of its own stands."""
    net = fresh_net("torchvision")
    net.attention = nn.Conv2d(128, 128, 1)
    path = write(tmp_path / "net.pt", net.state_dict())
    assert refusal(path).endswith("behind the last stage; layers between the stages make it another net")
    assert take(path, backbone=True).architecture.num_classes == 0


@pytest.mark.parametrize("layout", ["torchvision", "seed", "mmpretrain"])
def test_stems_of_one_channel_can_be_made_for_three(layout: str, tmp_path: Path) -> None:
    net = fresh_net(layout)
    name = LAYOUTS[layout].root + LAYOUTS[layout].stem[0]
    stem = net.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    net.set_submodule(name, nn.Conv2d(1, 8, 3, stem.stride[0], stem.padding[0], bias=False))
    tensors = net.state_dict()
    weight = tensors[f"{name}.weight"]
    assert (
        f"{name}.weight has shape [8, 1, 3, 3]: the net takes images of 1 channel, and all nets here take 3; save "
        in (refusal(write(tmp_path / "net.pt", tensors)))
    )
    mended = take(write(tmp_path / "mended.pt", {**tensors, f"{name}.weight": weight.repeat(1, 3, 1, 1) / 3}))
    grey = torch.randn(1, 1, 64, 64)
    three = fresh_net(layout)
    three.load_state_dict(mended.tensors)
    with torch.no_grad():
        torch.testing.assert_close(three(grey.repeat(1, 3, 1, 1)), net(grey), rtol=1e-4, atol=1e-4)


def test_other_stems_are_said_to_be_another_net(tmp_path: Path) -> None:
    tensors = small_state_dict("torchvision")
    for shape, said in (
        ((8, 4, 3, 3), "conv1.0.weight has shape [8, 4, 3, 3]: the net takes images of 4 channels, and all nets here "),
        ((8, 3, 7, 7), "conv1.0.weight has shape [8, 3, 7, 7], not [8, 3, 3, 3]; it is another net with these names"),
    ):
        reason = refusal(write(tmp_path / "net.pt", {**tensors, "conv1.0.weight": torch.zeros(shape)}))
        assert said in reason
        assert reason.endswith("cannot be converted")
        assert "again" not in reason


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_float8_is_named_and_made_float32(dtype: str, tmp_path: Path) -> None:
    tensors = {n: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for n, t in fresh_tensors().items()}
    floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    said = f"conv1.weight and {len(floats) - 1} more tensors are torch.{dtype}; save tensor.to(torch.float32) of each"
    assert refusal(write(tmp_path / "net.pt", tensors)).startswith(said)
    mended = {name: tensor.to(torch.float32) if name in floats else tensor for name, tensor in tensors.items()}
    found = take(write(tmp_path / "mended.pt", mended)).tensors
    assert all(torch.equal(found[name].to(tensors[name].dtype), tensors[name]) for name in floats)
    one = {**fresh_tensors(), "conv2.weight": tensors["conv2.weight"]}
    assert refusal(write(tmp_path / "one.pt", one)).startswith(f"conv2.weight is torch.{dtype}; save tensor.to(")


def fresh_tensors() -> dict[str, torch.Tensor]:
    """The seed's, with values that eight bits hold."""
    return {name: tensor.clamp(-8, 8) for name, tensor in small_state_dict("seed").items()}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool"])
def test_whole_numbers_are_no_weights(dtype: str, tmp_path: Path) -> None:
    tensors = {**fresh_tensors(), "conv2.weight": torch.ones(40, 128, 1, 1, dtype=getattr(torch, dtype))}
    reason = refusal(write(tmp_path / "net.pt", tensors))
    assert reason.startswith(f"conv2.weight is torch.{dtype}; weights are floating-point, and rounding ")
    assert reason.endswith("save the float net's state_dict()")


def test_complex_weights_without_imaginary_parts(tmp_path: Path) -> None:
    tensors = {n: t.to(torch.complex64) if t.is_floating_point() else t for n, t in fresh_tensors().items()}
    assert "weights are real; where the imaginary parts are 0, save tensor.real" in refusal(
        write(tmp_path / "net.pt", tensors)
    )
    mended = {name: tensor.real if tensor.is_complex() else tensor for name, tensor in tensors.items()}
    assert_same(take(write(tmp_path / "mended.pt", mended)).tensors, fresh_tensors())


def test_float64_beside_float32(tmp_path: Path) -> None:
    net = fresh_net("seed")
    net.bn1.double()
    assert refusal(write(tmp_path / "net.pt", net.state_dict())).startswith(
        "bn1.weight and 3 more tensors are torch.float64, and other weights are not; make them all one dtype"
    )
    take(write(tmp_path / "mended.pt", net.double().state_dict()))
