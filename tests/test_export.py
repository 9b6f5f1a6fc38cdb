"""``flax-shufflenet export``: the file is what its help says, and the same net."""

import json
import zipfile

import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import flax_shufflenet as fs
from flax_shufflenet.commands import export
from tests.command_tools import run_command
from tests.net_tools import apply, new_net

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    architecture = fs.Architecture(stage_widths=(8,), stage_blocks=(1,), stem_width=4, last_width=16, num_classes=3)
    model = new_net(architecture)
    model.eval()
    path = tmp_path_factory.mktemp("nets") / "net.safetensors"
    described = {"class_names": '["ant", "bee", "cow"]', "mean": json.dumps(MEAN), "std": json.dumps(STD)}
    fs.save(model, path, {**described, "image_size": "16"})
    return model, path


def test_the_file_holds_the_net_for_every_platform_and_batch(net, tmp_path, capsys):
    model, path = net
    code, out, err = run_command(capsys, export, path, "-o", tmp_path / "net.exported.zip")
    assert (code, err) == (0, [])
    assert "uint8 [n, 16, 16, 3]" in out

    # As the help says.
    with zipfile.ZipFile(tmp_path / "net.exported.zip") as file:
        program = jax.export.deserialize(bytearray(file.read("program.jax")))
        metadata = json.loads(file.read("metadata.json"))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert metadata["class_names"] == ["ant", "bee", "cow"]
    assert metadata["resize"] == "whole image stretched to 16x16, bilinear"
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    normalised = jnp.asarray((images / 255 - MEAN) / STD, jnp.float32)
    expected = np.asarray(apply(model, normalised))
    np.testing.assert_allclose(program.call(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    code, _, err = run_command(capsys, export, path, "-o", tmp_path / "net.exported.zip")
    assert code == 1
    assert len(err) == 1
    assert "net.exported.zip exists: name another --output" in err[0]


def test_a_program_that_differs_is_not_written(net, tmp_path, capsys, monkeypatch):
    """The program is made from another net than the one it is compared with."""
    _, path = net
    fuse = fs.fuse

    def fuse_altered(model: fs.ShuffleNetV2) -> fs.FusedNet:
        assert model.classifier.bias is not None
        model.classifier.bias[...] += 1
        altered = fuse(model)
        model.classifier.bias[...] -= 1
        return altered

    monkeypatch.setattr(fs, "fuse", fuse_altered)
    code, out, err = run_command(capsys, export, path, "-o", tmp_path / "net.zip", "--platforms", "cpu")
    assert (code, out) == (1, "")
    assert "nothing was written" in err[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--platforms", "npu"], 2, "--platforms"),
        (["-o", "missing/net.zip"], 1, "there is no folder missing"),
        (["--size", "0"], 2, "--size must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(net, capsys, arguments, code, said):
    found, out, err = run_command(capsys, export, net[1], *arguments)
    assert (found, out, len(err)) == (code, "", 1)
    assert said in err[0]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a machine without an accelerator")
def test_a_program_that_cannot_be_checked_here_is_refused(net, tmp_path, capsys):
    code, _, err = run_command(capsys, export, net[1], "-o", tmp_path / "net.zip", "--platforms", "tpu")
    assert code == 2
    assert err == ["export: --platforms tpu: none of them is here to check the program on; add cpu (see --help)"]
