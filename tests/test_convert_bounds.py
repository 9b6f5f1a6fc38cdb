"""What a file claims is held to what it has, and no number in it is too large to speak of."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_tools import fresh_net, saved, small_state_dict
from convert_tools import small_architecture
from PIL import Image, PngImagePlugin

import convert
from convert.evidence.images import settle_input
from convert.files.read import read
from convert.layouts import LAYOUTS
from convert.proof.images import read_images


def with_pickle_changed(data: bytes, old: bytes, new: bytes) -> bytes:
    """A checkpoint whose pickle has other bytes in one place."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl"):
                assert content.count(old) == 1
                content = content.replace(old, new)
            target.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("count", [0, 899, 901, 1800, 65535])
def test_a_storage_that_is_not_as_large_as_it_is_said_to_be(count: int, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    data = saved({"weight": torch.ones(300, 3)[:200]})
    as_pickled = b"M" + (900).to_bytes(2, "little")
    path.write_bytes(with_pickle_changed(data, as_pickled, as_pickled))
    assert read(path).content["weight"].shape == (200, 3)
    path.write_bytes(with_pickle_changed(data, as_pickled, b"M" + count.to_bytes(2, "little")))
    reason = rf"data/0 has 3,600 bytes for what is said to be {count:,} values of float32; the file is damaged"
    with pytest.raises(convert.ConvertError, match=reason):
        read(path)


def test_keys_of_thousands_of_digits(tmp_path: Path) -> None:
    """Python does not write such numbers out, and no message has to."""
    key, tensors = 10**5001, small_state_dict("seed")
    cases: list[tuple[dict[Any, Any], str]] = [
        ({key: torch.ones(2)}, "another net, with tensors such as a number of 16,613 bits"),
        ({key: 3}, "a dictionary without tensors, with the keys a number of 16,613 bits"),
        ({key: tensors, "other": dict(tensors)}, "holds 2 nets; choose one with --key: a number of 16,613 bits; other"),
    ]
    for content, reason in cases:
        with pytest.raises(convert.ConvertError, match=reason):
            convert.load_torch(content)
        torch.save(content, tmp_path / "net.pt")
        with pytest.raises(convert.ConvertError, match="holds a number of 2,077 bytes, which no net has"):
            convert.load_torch(tmp_path / "net.pt")


@pytest.mark.parametrize(("layer", "attribute", "digits"), [("conv1.0", "stride", 5000), ("conv1.1", "eps", 400)])
def test_layers_with_numbers_beyond_all_measure(layer: str, attribute: str, digits: int, tmp_path: Path) -> None:
    """They fit into no float, and into no message."""
    net = fresh_net("chenyaofo")
    setattr(net.get_submodule(layer), attribute, 10**digits)
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(convert.ConvertError, match=r"holds a number of [\d,]+ bytes, which no net has"):
        convert.load_torch(tmp_path / "net.pt")


def test_a_stem_whose_statistics_are_beyond_all_measure() -> None:
    """Their quotient is 0, by which nothing is divided."""
    tensors = {name: tensor.double() for name, tensor in small_state_dict("seed").items()}
    tensors["conv1.weight"] *= 1e140
    tensors["bn1.running_var"][:] = 1e-322
    assert settle_input(LAYOUTS["seed"], small_architecture("seed"), tensors) == ([], {})


def test_large_images_are_shrunk_and_not_all_of_them_read(tmp_path: Path) -> None:
    Image.new("RGB", (5000, 3000)).save(tmp_path / "0.png")
    for number in (1, 2):
        Image.new("RGB", (512, 500)).save(tmp_path / f"{number}.png")
    assert [batch.shape for batch in read_images(tmp_path)] == [(1, 307, 512, 3), (1, 500, 512, 3)]


def test_images_of_endless_text(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (3 << 20), zip=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png", pnginfo=text)
    with pytest.raises(convert.ConvertError, match=r"^--images .*/0\.png: cannot be read as an image \("):
        read_images(tmp_path)
