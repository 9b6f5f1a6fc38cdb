"""``python -m convert``: every layout to Flax and back, across layouts, its proof, its report and its exit codes."""

import copy
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args
from unittest.mock import patch

import convert_tools
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from checkpoint_tools import small_net, take
from convert_tools import assert_same_tensors, prove_nothing, random_state_dict, run_convert

import convert
import flax_shufflenet as fs
import torch_ref.__main__
from convert import job, mapping
from convert.across import family_of, rewrite
from convert.contents.select import find_net
from convert.layouts import LAYOUTS
from convert.options import LayoutName
from convert.origin import Restored, restore_origin
from convert.pipeline import as_source
from convert.proof.report import Report
from convert.proof.verify import _FlaxNet, _Traced, proving_devices, verify
from flax_shufflenet.weights import flat_arrays, from_arrays
from tests.net_tools import apply, new_net, random_arrays

# As many classes as no default has, and for all tests the same, so that nets of one layout share their programs.
small_architecture = partial(convert_tools.small_architecture, num_classes=7)

ROOT = Path(__file__).parent.parent
SAME_NAMES = ("chenyaofo", "torchvision")
# What the tensors of these layouts cannot tell.
GIVEN = {
    "chenyaofo": ["--stem", "cifar"],
    "torchvision": ["--stem", "imagenet"],
    "nanodet": ["--activation", "leaky_relu"],
    "pytorchcv_b": ["--shuffle", "after"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_to_flax_and_back_bit_for_bit(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture = small_architecture(layout)
    tensors = random_state_dict(layout, architecture)
    checkpoint = tmp_path / "net.pt"
    torch.save(tensors, checkpoint)

    outcome = run_convert(capsys, checkpoint, *GIVEN.get(layout, []))
    assert outcome.code == 0, outcome.err
    assert f"layout    {layout} " in outcome.out
    assert "7 classes" in outcome.out
    model = fs.load(tmp_path / "net.safetensors")
    assert model.architecture == architecture

    outcome = run_convert(capsys, tmp_path / "net.safetensors", "-o", tmp_path / "back.pt")
    assert outcome.code == 0, outcome.err
    assert_same_tensors(torch.load(tmp_path / "back.pt", weights_only=True), tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "net.pt", "net.safetensors"]


@pytest.mark.parametrize(("layout", "bias"), [("chenyaofo", "fc.bias"), ("megvii", "classifier.0.bias")])
def test_an_unusual_head_comes_back_as_it_was(
    layout: str, bias: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the bias that the layout's has, or with one that it has not."""
    tensors = random_state_dict(layout, small_architecture(layout))
    if tensors.pop(bias, None) is None:
        tensors[bias] = torch.randn(7)
    torch.save(tensors, tmp_path / "net.pt")
    prove_nothing(monkeypatch)
    outcome = run_convert(capsys, tmp_path / "net.pt", *GIVEN.get(layout, []))
    assert outcome.code == 0, outcome.err
    outcome = run_convert(capsys, tmp_path / "net.safetensors", "-o", tmp_path / "back.pt")
    assert outcome.code == 0, outcome.err
    assert_same_tensors(torch.load(tmp_path / "back.pt", weights_only=True), tensors)
    outcome = run_convert(
        capsys, tmp_path / "net.pt", "--to", layout, "-o", tmp_path / "same.pt", *GIVEN.get(layout, [])
    )
    assert outcome.code == 0, outcome.err
    assert_same_tensors(torch.load(tmp_path / "same.pt", weights_only=True), tensors)


def test_half_precision_comes_back_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = random_state_dict("seed", small_architecture("seed"))
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "half.pt")
    outcome = run_convert(capsys, tmp_path / "half.pt")
    assert outcome.code == 0, outcome.err
    assert "float16 made float32, which is exact" in outcome.out
    outcome = run_convert(capsys, tmp_path / "half.safetensors", "-o", tmp_path / "back.pt")
    assert outcome.code == 0, outcome.err
    assert_same_tensors(torch.load(tmp_path / "back.pt", weights_only=True), tensors)


def half_precision_arrays(architecture: fs.Architecture) -> dict[str, np.ndarray]:
    """A net's arrays as they come from a file in float16."""
    return {
        name: array.astype(np.float16).astype(np.float32) if array.dtype.kind == "f" else array
        for name, array in random_arrays(architecture).items()
    }


def restored(
    architecture: fs.Architecture, arrays: dict[str, np.ndarray], target: str, metadata: dict[str, str]
) -> Restored:
    """In another layout, in the precision that the metadata tells."""
    rewritten = rewrite(architecture, arrays, target)
    tensors = mapping.to_tensors(rewritten.layout, rewritten.architecture, rewritten.arrays)
    return restore_origin(rewritten, tensors, arrays, metadata)


@pytest.mark.parametrize(
    ("source", "target", "changes", "dtype"),
    [
        ("torchvision", "mmpretrain", {}, torch.float16),  # the same arrays under other names
        ("weiaicunzai", "weiaicunzai", {"conv_bias": False}, torch.float16),  # given biases of zero
        ("seed", "seed", {"conv_bias": True}, torch.float32),  # biases folded into means, which float16 does not hold
    ],
)
def test_half_precision_goes_along_to_another_layout(
    source: str, target: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    """By the arrays it belongs to, and never two precisions in one file."""
    architecture = dataclasses.replace(small_architecture(source), **changes)
    arrays = half_precision_arrays(architecture)
    half = {name: "float16" for name, array in arrays.items() if array.dtype == np.float32}
    tensors, notes = restored(architecture, arrays, target, {"half_precision": json.dumps(half)})
    assert {tensor.dtype for tensor in tensors.values()} == {dtype, torch.int64}
    assert any("does not fit into float16" in note for note in notes) == (dtype == torch.float32)


def test_notes_on_half_precision_that_do_not_fit_the_net() -> None:
    architecture = small_architecture("seed")
    arrays = half_precision_arrays(architecture)
    note = {"half_precision": json.dumps({"stem.bn.scale": "float16"})}
    tensors, _ = restored(architecture, arrays, "seed", note)
    assert [name for name, tensor in tensors.items() if tensor.dtype == torch.float16] == ["bn1.weight"]
    trained = arrays | {"stem.bn.scale": arrays["stem.bn.scale"] + np.float32(2**-20)}
    with pytest.raises(convert.ConvertError, match=r"bn1\.weight does not fit into float16"):
        restored(architecture, trained, "seed", note)
    for bad in (
        '{"bn1.weight": "float16"}',
        '{"stem.bn.scale": "float8"}',
        '{"stem.bn.num_batches_tracked": "float16"}',
        "[",
    ):
        with pytest.raises(convert.ConvertError, match="its note on half precision cannot be read"):
            restored(architecture, arrays, "seed", {"half_precision": bad})


@pytest.mark.slow
def test_the_command_as_a_user_runs_it(tmp_path: Path) -> None:
    """The seed's own checkpoint, saved by torch_ref, through two real processes."""
    checkpoint = tmp_path / "ckpt.pt"
    saved = subprocess.run(
        [sys.executable, "-m", "torch_ref", "--net_size", "0.5", "--save", checkpoint],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Total params: 352,042" in saved.stdout
    converted = subprocess.run(
        [sys.executable, "-m", "convert", checkpoint], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (converted.returncode, converted.stderr) == (0, "")
    assert "352,042 parameters" in converted.stdout
    metadata = fs.read_metadata(tmp_path / "ckpt.safetensors")
    assert metadata["layout"] == "seed"
    assert metadata["source_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert json.loads(metadata["versions"])["jax"] == jax.__version__
    assert fs.load(tmp_path / "ckpt.safetensors").architecture == fs.seed(0.5)


def run_torch_ref(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Its exit code, and the last line of its errors."""
    with patch.object(sys, "argv", ["torch_ref", *map(str, arguments)]):
        try:
            code = torch_ref.__main__.main()
        except SystemExit as exit:
            code = int(exit.code or 0)
    return code, (capsys.readouterr().err.splitlines() or [""])[-1]


def test_a_checkpoint_to_try_it_with_is_written_whole_and_over_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken.pt").write_bytes(b"mine")
    (tmp_path / "taken.pt.partial").write_bytes(b"mine")
    for name, reason in {
        "folder": "exists and is no regular file; choose another path",
        "taken.pt": "exists; choose another path, or overwrite it with --force",
        "nowhere/net.pt": "cannot be written (Parent directory",
    }.items():
        code, error = run_torch_ref(capsys, "--save", tmp_path / name)
        assert code == 1
        assert error.startswith(f"{tmp_path / name}: {reason}")
    assert run_torch_ref(capsys, "--save", tmp_path / "taken.pt", "--force") == (0, "")
    assert (tmp_path / "taken.pt.partial").read_bytes() == b"mine"
    assert take(tmp_path / "taken.pt").layout.name == "seed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "taken.pt", "taken.pt.partial"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "99999999999999999999999", "--seed must be from 0 to 9223372036854775807, not 999999"),
        ("--num_classes", "1000000000000", "--num_classes must be from 1 to 100,000, not 1000000000000"),
    ],
)
def test_numbers_that_no_torch_ref_has(option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = run_torch_ref(capsys, option, value)
    assert code == 2
    assert said in error


def test_a_trained_flax_net_goes_to_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = new_net(small_architecture("seed"))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 32, 32, 3)), jnp.float32)
    apply(model, images)
    model.eval()
    fs.save(model, tmp_path / "net.safetensors")
    outcome = run_convert(capsys, tmp_path / "net.safetensors")
    assert outcome.code == 0, outcome.err
    net = LAYOUTS["seed"].build_reference(model.architecture)
    net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    with torch.no_grad():
        theirs = net.eval()(torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy()))
    ours = apply(model, images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("kuangliu", "chenyaofo", "averages 4x4 values"),
        ("kuangliu", "torchvision", "net.maxpool = nn.Identity()"),
        ("torchvision", "mmpretrain", ""),
        ("torchvision", "ericsun99", "averages all values"),
        ("ericsun99", "torchvision", "averages 7x7 values"),
    ],
)
def test_one_pytorch_layout_to_another(
    source: str, target: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = random_state_dict(source, small_architecture(source))
    torch.save(tensors, tmp_path / "net.pt")
    outcome = run_convert(
        capsys, tmp_path / "net.pt", "--to", target, "-o", tmp_path / "other.pt", *GIVEN.get(source, [])
    )
    assert outcome.code == 0, outcome.err
    assert said in outcome.out
    other = torch.load(tmp_path / "other.pt", weights_only=True)
    by_shape = sorted(tensors.values(), key=lambda tensor: (tuple(tensor.shape), float(tensor.double().sum())))
    other_by_shape = sorted(other.values(), key=lambda tensor: (tuple(tensor.shape), float(tensor.double().sum())))
    assert all(torch.equal(a, b) for a, b in zip(by_shape, other_by_shape, strict=True))
    assert take(tmp_path / "other.pt").layout.name in (target, *SAME_NAMES)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("kuangliu", "seed", "its down blocks have ReLUs"),
        ("seed", "torchvision", "its down blocks have no ReLU"),
        ("megvii", "torchvision", "it shuffles before each basic block"),
        ("weiaicunzai", "chenyaofo", "its stem has no ReLU"),
        ("chenyaofo", "mmpretrain", "its stem has stride 1"),
        (
            "openpifpaf",
            "torchvision",
            "its down blocks' depthwise kernels are 5x5, in that layout they are 3x3; its basic",
        ),
    ],
)
def test_a_layout_that_cannot_hold_a_net_says_why(
    source: str, target: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(random_state_dict(source, small_architecture(source, num_classes=10)), tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt", "--to", target)
    assert outcome.code == 1
    assert outcome.err.startswith("convert: ")
    assert outcome.err.count("\n") == 1
    assert f"the {target} layout cannot hold this net: {reason}" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_convolution_biases_fold_into_a_layout_without_them() -> None:
    architecture = small_architecture("chenyaofo", conv_bias=True, stage_blocks=(1, 0, 0))  # each kind of block
    arrays = {name: np.asarray(array) for name, array in flat_arrays(new_net(architecture)).items()}
    random = np.random.default_rng(0)
    for name, array in arrays.items():
        if name.endswith((".mean", ".bias")):
            arrays[name] = random.standard_normal(array.shape).astype(np.float32)
    tensors = convert.to_torch(from_arrays(architecture, arrays), "chenyaofo")
    assert not any(name.startswith("conv1.0.bias") for name in tensors)
    expected = arrays["stem.bn.mean"] - arrays["stem.conv.bias"]
    np.testing.assert_array_equal(tensors["conv1.1.running_mean"], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_familys_own_architecture_is_recognised(layout: str) -> None:
    assert family_of(fs.preset(layout, 1.0)) in (layout, "torchvision")  # mmpretrain's and birder's are torchvision's


def test_the_command_line_knows_every_layout() -> None:
    assert get_args(LayoutName) == tuple(LAYOUTS) == fs.FAMILIES


def test_the_python_interface_does_the_same(tmp_path: Path) -> None:
    architecture = small_architecture("kuangliu")
    tensors = random_state_dict("kuangliu", architecture)
    random_state = torch.get_rng_state()
    model, report = convert.load_torch({"net": tensors, "acc": 90.0})
    assert model.architecture == architecture
    assert report.proof.failure is None
    assert report.proof.float64 <= 1e-10
    assert_same_tensors(convert.to_torch(model, "kuangliu"), tensors)
    torch.save(tensors, tmp_path / "net.pt")
    from_file, _ = convert.load_torch(tmp_path / "net.pt")
    from_memory, found = flat_arrays(model), flat_arrays(from_file)
    assert found.keys() == from_memory.keys()
    for name, array in from_memory.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(convert.ConvertError, match="the layout must be one of seed, kuangliu"):
        convert.to_torch(model, "resnet")
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_python_interface_takes_modules_and_heeds_their_layers() -> None:
    net = cast(Any, copy.deepcopy(small_net("torchvision", 7)))
    net.conv1[0].stride, net.maxpool = (1, 1), torch.nn.Identity()
    source = as_source(net)
    assert (source.kind, source.sha256) == ("in memory", as_source(net.state_dict()).sha256)
    assert find_net(source.content).layout.name == "chenyaofo"
    net.conv1.extra = lambda: None
    with pytest.raises(convert.ConvertError, match=r"^module: cannot be read \(.*; give its state_dict\(\) instead"):
        convert.load_torch(net)


def test_the_hash_of_a_dictionary_is_of_all_tensors_in_it() -> None:
    tensors = random_state_dict("seed", small_architecture("seed"))
    content: dict[str, Any] = {"epoch": 3, "nets": [tensors]}
    content["itself"] = content
    hashes = [as_source(some).sha256 for some in (tensors, content, {"nets": [tensors | {"a": torch.ones(1)}]}, {})]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_what_the_python_interface_does_not_take(tmp_path: Path) -> None:
    tensors = random_state_dict("seed", small_architecture("seed"))
    architecture = small_architecture("seed")
    model = from_arrays(architecture, mapping.to_arrays(LAYOUTS["seed"], architecture, tensors))
    fs.save(model, tmp_path / "net.safetensors")
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    load, to = cast(Any, convert.load_torch), cast(Any, convert.to_torch)  # with what their types rule out
    for call, reason in (
        (lambda: load(3), "load_torch takes a file, a state_dict or a torch.nn.Module, not a int"),
        (lambda: load(tmp_path / "net.safetensors"), "a Flax net; flax_shufflenet.load opens it"),
        (lambda: load({"a": torch.nn.UninitializedParameter()}), "a has no values yet; run its module once on images"),
        (lambda: load(tensors, stem="foo"), "stem must be one of cifar, imagenet, "),
        (lambda: load(tensors, activation="foo"), "activation must be one of relu, leaky_relu, not foo"),
        (lambda: load(tensors, shuffle="foo"), "shuffle must be one of after, reverse, not foo"),
        (lambda: load(wide), r"its weights are float64; call jax\.config\.update\('jax_enable_x64', True\) first"),
        (lambda: to("net.safetensors"), "to_torch takes a net, as flax_shufflenet.load gives it, not a str"),
        (lambda: to(fs.fuse(model)), "not a FusedNet; of a fused net, give the one that was fused"),
        (lambda: to(model, ["seed"]), r"the layout must be one of seed, .*, not \['seed'\]"),
    ):
        with pytest.raises(convert.ConvertError, match=reason):
            call()


def swapped(arrays: dict[str, np.ndarray], one: str, other: str) -> dict[str, np.ndarray]:
    return {**arrays, one: arrays[other], other: arrays[one]}


@pytest.mark.parametrize(
    ("one", "other", "layer"),
    [
        ("stages.1.1.branch.0.conv.kernel", "stages.1.1.branch.2.conv.kernel", "layer2.1.bn1"),
        ("stages.0.1.branch.1.bn.scale", "stages.0.1.branch.1.bn.bias", "layer1.1.bn2"),
        ("stages.2.0.right.1.bn.mean", "stages.2.0.right.1.bn.var", "layer3.0.branch2.3"),
        ("last.bn.mean", "last.bn.bias", "bn2"),
    ],
)
def test_the_proof_finds_what_shapes_cannot_and_names_the_first_layer(one: str, other: str, layer: str) -> None:
    from convert import mapping

    architecture = small_architecture("seed")
    tensors = random_state_dict("seed", architecture)
    arrays = swapped(mapping.to_arrays(LAYOUTS["seed"], architecture, tensors), one, other)
    proof = verify(LAYOUTS["seed"], architecture, tensors, architecture, arrays)
    assert proof.failure == f"the nets differ from layer {layer} on"


def test_a_failed_proof_writes_nothing_and_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert import mapping

    right = mapping.to_arrays
    monkeypatch.setattr(mapping, "to_arrays", lambda *a: swapped(right(*a), "stem.bn.scale", "stem.bn.bias"))
    monkeypatch.setattr("convert.pipeline._check_round_trip", lambda *_: None)
    torch.save(random_state_dict("seed", small_architecture("seed")), tmp_path / "net.pt")
    report = tmp_path / "report.md"
    outcome = run_convert(capsys, tmp_path / "net.pt", "--report", report)
    assert outcome.code == 1
    assert "the proof failed, the nets differ from layer bn1 on; no net was written" in outcome.err
    assert "layer1.0.branch1.1" in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt", "report.md"]
    assert "failed: the nets differ from layer bn1 on" in report.read_text()


def test_certificate_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(random_state_dict("seed", small_architecture("seed")), tmp_path / "net.pt")
    report, plot = tmp_path / "report.md", tmp_path / "plot.png"
    outcome = run_convert(capsys, tmp_path / "net.pt", "--report", report, "--plot", plot)
    assert outcome.code == 0, outcome.err
    text = report.read_text()
    assert "proven" in text
    assert hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest() in text
    assert all(f"| `{layer}` |" in text for layer in ("bn1", "layer2.2.bn3", "bn2"))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_files_are_written_all_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(random_state_dict("seed", small_architecture("seed")), tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt", "--report", "/proc/x.md")
    assert outcome.code == 1
    assert outcome.err.startswith("convert: /proc/x.md: cannot be written (")
    written = []

    def interrupted(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        written.append(path.name)
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt

    monkeypatch.setattr(job, "write_whole", interrupted)
    outcome = run_convert(capsys, tmp_path / "net.pt", "--report", tmp_path / "report.md")
    assert (outcome.code, outcome.err) == (130, "convert: interrupted; nothing was written\n")
    assert written == ["report.md", "net.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_a_file_name_that_no_terminal_should_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"a\xff\x1b[31m\nlayout    fake.pt")
    torch.save(random_state_dict("seed", small_architecture("seed")), path)
    outcome = run_convert(capsys, path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("file      a\\udcff\\x1b[31m\\nlayout    fake.pt (PyTorch)\n")
    assert outcome.out.splitlines()[-1].startswith(f"wrote     {tmp_path}/a\\udcff\\x1b[31m\\nlayout    fake.safeten")
    assert fs.read_metadata(path.with_suffix(".safetensors"))["source"] == "a\\udcff\\x1b[31m\\nlayout    fake.pt"


def test_real_images_instead_of_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path / "images"
    folder.mkdir()
    digits, _ = load_digits(return_X_y=True)
    for number, digit in enumerate(digits[:19].reshape(-1, 8, 8)):
        size = (32, 32) if number < 16 else (48, 40)  # 16 of 32x32, as the noise's, for which the net is compiled
        Image.fromarray((digit * 15).astype(np.uint8)).resize(size).save(folder / f"{number}.png")
    torch.save(random_state_dict("seed", small_architecture("seed")), tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt", "--images", folder)
    assert outcome.code == 0, outcome.err
    assert "16x32x32x3, 3x40x48x3" in outcome.out
    assert "the same for 19 of 19 images" in outcome.out
    (folder / "broken.png").write_bytes(b"not an image")
    outcome = run_convert(capsys, tmp_path / "net.pt", "--images", folder, "--force")
    assert outcome.code == 1
    assert "broken.png: cannot be read as an image" in outcome.err


def test_files_that_exist_are_kept_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(random_state_dict("seed", small_architecture("seed")), tmp_path / "net.pt")
    existing = tmp_path / "net.safetensors"
    existing.write_bytes(b"mine")
    outcome = run_convert(capsys, tmp_path / "net.pt")
    assert (outcome.code, existing.read_bytes()) == (1, b"mine")
    assert "overwrite it with --force" in outcome.err
    assert run_convert(capsys, tmp_path / "net.pt", "--force").code == 0
    assert fs.load(existing).architecture.stage_widths == (32, 64, 128)
    outcome = run_convert(capsys, tmp_path / "net.pt", "-o", tmp_path / "nowhere" / "net.safetensors")
    assert outcome.code == 1
    assert "there is no folder" in outcome.err


@pytest.mark.parametrize("arguments", [[], ["net.pt", "--stem", "vgg"], ["net.pt", "--no_such_flag"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_convert(capsys, *arguments).code == 2


def test_the_proof_is_made_on_the_cpu_and_on_an_accelerator_at_highest_precision() -> None:
    """The same CPU stands for both; whatever precision and device the caller's JAX is set to."""
    tensors = random_state_dict("seed", small_architecture("seed"))
    (cpu,) = jax.devices("cpu")[:1]
    architecture = mapping.infer_architecture(LAYOUTS["seed"], tensors)
    arrays = mapping.to_arrays(LAYOUTS["seed"], architecture, tensors)
    assert proving_devices()[0].platform == "cpu"
    with jax.default_matmul_precision("bfloat16"):
        proof = verify(LAYOUTS["seed"], architecture, tensors, architecture, arrays, devices=[cpu, cpu])
        traced = _Traced(_FlaxNet(architecture, arrays, np.float32, cpu), np.zeros((1, 32, 32, 3)), with_layers=False)
    text = traced._lowered.as_text()
    assert "HIGHEST" in text
    assert "DEFAULT" not in text
    assert proof.failure is None
    assert proof.elsewhere is not None
    damaged = dataclasses.replace(proof.elsewhere, float64=1e-3, device="NVIDIA H200")
    assert dataclasses.replace(proof, elsewhere=damaged).failure == (
        "on NVIDIA H200 the outputs differ by 1.0e-03 in float64"
    )
    report = Report("net.pt", "", "PyTorch", "seed", architecture, 1, 1, (), proof)
    assert sum(line.startswith("float64 ") for line in report.lines()) == 2
