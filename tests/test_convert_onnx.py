"""``python -m convert net.safetensors -o net.onnx``: the same net in ONNX Runtime, for any batch."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from convert_tools import random_state_dict, run_convert, small_architecture

import flax_shufflenet as fs
from convert import onnx_file
from convert.errors import ConvertError
from convert.layouts import LAYOUTS
from convert.mapping import to_arrays, to_tensors
from flax_shufflenet.images.preprocessing import expected_by
from flax_shufflenet.weights import flat_arrays, from_arrays
from tests.net_tools import apply

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    architecture = small_architecture("seed", num_classes=3)
    model = from_arrays(architecture, to_arrays(LAYOUTS["seed"], architecture, random_state_dict("seed", architecture)))
    path = tmp_path_factory.mktemp("nets") / "net.safetensors"
    described = {"class_names": '["ant", "bee", "cow"]', "mean": json.dumps(MEAN), "std": json.dumps(STD)}
    fs.save(model, path, {**described, "image_size": "24"})
    return model, path


@pytest.mark.slow
def test_onnx_runtime_computes_what_the_flax_net_does(net, tmp_path, capsys):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = net
    outcome = run_convert(capsys, path, "-o", tmp_path / "net.onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert "onnx      images float32 [batch, 3, 24, 24], normalised" in outcome.out
    assert "top-1 the same for 22 of 22 images" in outcome.out

    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).standard_normal((7, 24, 24, 3)).astype(np.float32)
    (scores,) = session.run(["scores"], {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    expected = np.asarray(apply(model, jnp.asarray(images)))
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())

    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert json.loads(properties["class_names"]) == ["ant", "bee", "cow"]
    assert json.loads(properties["mean"]) == list(MEAN)
    assert properties["channels"] == "red, green, blue"

    # Compared with other weights than its own, it is refused.
    architecture = model.architecture
    arrays = {name: np.asarray(array) for name, array in flat_arrays(model).items()}
    reference = LAYOUTS["seed"].build_reference(architecture)
    arrays["classifier.kernel"] = arrays["classifier.kernel"] + 0.001
    reference.load_state_dict(to_tensors(LAYOUTS["seed"], architecture, arrays))
    data, expected = (tmp_path / "net.onnx").read_bytes(), expected_by(architecture, fs.read_metadata(path))
    with pytest.raises(ConvertError, match="in ONNX Runtime the net's error is"):
        onnx_file._check(data, reference.eval(), architecture, arrays, expected)


def test_what_cannot_become_onnx_is_one_line(net, tmp_path, capsys, monkeypatch):
    torch.save({}, tmp_path / "net.pt")
    outcome = run_convert(capsys, tmp_path / "net.pt", "-o", tmp_path / "net.ONNX")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "ONNX is made from a Flax net" in outcome.err
    for arguments in ((net[1], "-o", tmp_path / "back.pt"), (tmp_path / "net.pt",)):
        outcome = run_convert(capsys, *arguments, "--size", "64")
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
        assert "--size is for outputs in .onnx, leave it out" in outcome.err
    for size in ("0", "-5"):
        outcome = run_convert(capsys, net[1], "-o", tmp_path / "net.onnx", "--size", size)
        assert (outcome.code, outcome.err) == (2, f"convert: --size must be at least 1, not {size} (see --help)\n")
    monkeypatch.setattr(onnx_file, "_PACKAGES", ("onnx", "no_such_package"))
    outcome = run_convert(capsys, net[1], "-o", tmp_path / "net.ONNX")
    assert outcome.code == 1
    assert outcome.err == "convert: writing ONNX needs no_such_package: pip install 'flax-shufflenet[onnx]'\n"
