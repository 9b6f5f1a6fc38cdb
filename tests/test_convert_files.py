"""Every format of file, and every way a file can be named or stored, gives the original tensors bit for bit."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_tools import (
    all_formats,
    assert_same,
    in_safetensors,
    legacy,
    saved,
    small_net,
    small_state_dict,
    take,
    torchscript,
)

from convert.across import Rewritten
from convert.contents.select import find_net
from convert.errors import ConvertError
from convert.files.read import read
from convert.layouts import LAYOUTS
from convert.mapping import to_arrays
from convert.origin import describe_origin, restore_origin
from flax_shufflenet.architecture import family_fields

GIVEN: dict[str, dict[str, Any]] = {
    "chenyaofo": {"stem": "cifar"},
    "torchvision": {"stem": "imagenet"},
    "nanodet": {"activation": "leaky_relu"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_format(layout: str, tmp_path: Path) -> None:
    kinds = {
        "zip": "PyTorch",
        "legacy": "PyTorch (legacy format)",
        "safetensors": "safetensors",
        "torchscript": "TorchScript archive",
        "pt2": "exported program (.pt2)",
    }
    path = tmp_path / "net.jpg"  # what a file is called says nothing
    for form, data in all_formats(layout).items():
        path.write_bytes(data)
        source = read(path)
        assert source.kind == kinds[form]
        net = find_net(source.content, **GIVEN.get(layout, {}))
        assert net.layout.name == layout
        assert_same(net.tensors, small_state_dict(layout))


def test_what_is_read_is_what_pytorch_reads(tmp_path: Path) -> None:
    """Shared storages, slices, transposes, scalars, empty tensors, all dtypes, in both of torch.save's formats."""
    base = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    integers = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn)
    content = {
        "whole": base,
        "again": base,
        "row": base[2],
        "columns": base[:, 3:5],
        "transposed": base.T,
        "every other": base[::2, 1::3],
        "number": torch.tensor(3),
        "empty": torch.empty(0, 5),
        "parameter": torch.nn.Parameter(base.clone()),
        "counts": torch.arange(7).to(torch.uint16),
        **{str(dtype): torch.tensor([0, 1, 2]).to(dtype) for dtype in (*integers, *floats)},
    }
    for data in (saved(content), legacy(content), saved(content, pickle_protocol=4)):
        (tmp_path / "file").write_bytes(data)
        found = read(tmp_path / "file").content
        assert list(found) == list(content)
        for name, tensor in content.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert found[name].stride() == tensor.stride() or not tensor.numel()
            assert found[name].contiguous().view(-1).view(torch.uint8).equal(
                tensor.detach().contiguous().view(-1).view(torch.uint8)
            )  # fmt: skip


def test_a_scripted_net(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(torchscript(small_net("chenyaofo"), scripted=True))
    assert_same(take(path).tensors, small_state_dict("chenyaofo"))


def test_an_exported_program_of_an_older_pytorch(tmp_path: Path) -> None:
    """They keep a file of torch.save's in the archive, at one of two places."""
    tensors = small_state_dict("seed")
    for names in (("serialized_exported_program.json", "serialized_state_dict.pt"),
                  ("net/archive_format", "net/data/weights/model.pt")):  # fmt: skip
        with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
            archive.writestr(names[0], "pt2")
            archive.writestr(names[1], saved(tensors))
        source = read(tmp_path / "net.pt2")
        assert source.kind == "exported program (.pt2)"
        assert_same(find_net(source.content).tensors, tensors)


def test_a_shared_storage_in_every_archive(tmp_path: Path) -> None:
    """One flat buffer that all tensors are views of, as some trainers keep it."""
    tensors = small_state_dict("seed")
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    flat = torch.cat([tensor.reshape(-1) for tensor in floats.values()])
    parts = flat.split([tensor.numel() for tensor in floats.values()])
    shared = {**tensors, **{name: part.view(floats[name].shape) for name, part in zip(floats, parts, strict=True)}}
    for data in (saved(shared), legacy(shared)):
        (tmp_path / "net.pt").write_bytes(data)
        assert_same(take(tmp_path / "net.pt").tensors, tensors)


def test_two_names_for_one_tensor(tmp_path: Path) -> None:
    tensors = small_state_dict("seed")
    tensors["layer1.1.bn2.weight"] = tensors["layer1.1.bn1.weight"]
    for data in (saved(tensors), legacy(tensors)):
        (tmp_path / "net.pt").write_bytes(data)
        assert_same(take(tmp_path / "net.pt").tensors, tensors)


@pytest.mark.parametrize(
    ("layout", "dtype"), [("seed", torch.float16), ("weiaicunzai", torch.bfloat16), ("megvii", torch.float64)]
)
def test_other_precisions(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in small_state_dict(layout).items()
    }
    for data in (saved(tensors), legacy(tensors), in_safetensors(tensors)):
        (tmp_path / "net").write_bytes(data)
        assert_same(take(tmp_path / "net").tensors, tensors)


def test_batch_counts_made_floating_point_with_the_rest(tmp_path: Path) -> None:
    tensors = small_state_dict("seed")
    (tmp_path / "net.pt").write_bytes(saved({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    net = take(tmp_path / "net.pt")
    assert all(net.tensors[name].dtype == torch.int64 for name in tensors if name.endswith("num_batches_tracked"))
    assert any("num_batches_tracked is stored as floating-point" in note for note in net.notes)


def test_frozen_layers_without_batch_counts_come_back_without(tmp_path: Path) -> None:
    """As detectors that freeze the stem and the first stage save them."""
    tensors = small_state_dict("kuangliu")
    frozen = [name for name in tensors if name.startswith(("bn1.", "layer1.")) and name.endswith("num_batches_tracked")]
    for name in frozen:
        del tensors[name]
    (tmp_path / "net.pt").write_bytes(saved(tensors))
    net = take(tmp_path / "net.pt")
    assert net.counts_absent == {*frozen}
    assert any(f"for {len(frozen)} of 29 batch normalisations" in note for note in net.notes)
    arrays, note = to_arrays(net.layout, net.architecture, net.tensors), describe_origin(net)
    back = restore_origin(Rewritten(net.layout, net.architecture, arrays, ()), net.tensors, arrays, note)
    assert_same(back.tensors, tensors)
    for damaged in ("gone", '{"absent": 3}', '{"absent": ["stem.bn.mean"]}'):
        with pytest.raises(ConvertError, match="its note on num_batches_tracked cannot be read"):
            restore_origin(
                Rewritten(net.layout, net.architecture, arrays, ()),
                net.tensors,
                arrays,
                {"num_batches_tracked": damaged},
            )


def test_files_without_batch_counts(tmp_path: Path) -> None:
    tensors = {n: t for n, t in small_state_dict("kuangliu").items() if not n.endswith("num_batches_tracked")}
    (tmp_path / "net.pt").write_bytes(saved(tensors))
    net = take(tmp_path / "net.pt")
    assert len(net.counts_absent) == (len(net.tensors) - len(tensors)) > 0
    assert_same({name: tensor for name, tensor in net.tensors.items() if name in tensors}, tensors)
    assert all(int(tensor) == 0 for name, tensor in net.tensors.items() if name not in tensors)


def test_variances_that_are_zero_or_denormal(tmp_path: Path) -> None:
    tensors = small_state_dict("seed")
    tensors["bn1.running_var"][:2] = torch.tensor([0.0, 5.6e-45])
    (tmp_path / "net.pt").write_bytes(saved(tensors))
    assert_same(take(tmp_path / "net.pt").tensors, tensors)


def test_weights_in_channels_last_memory(tmp_path: Path) -> None:
    net = small_net("torchvision")
    tensors = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
               for n, t in net.state_dict().items()}  # fmt: skip
    assert not tensors["conv1.0.weight"].is_contiguous()
    (tmp_path / "net.pt").write_bytes(saved(tensors))
    assert_same(take(tmp_path / "net.pt").tensors, small_state_dict("torchvision"))


def test_a_file_saved_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "net.pt").write_bytes(saved(small_state_dict("seed")))
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(take(tmp_path / "net.pt").tensors, small_state_dict("seed"))


def test_a_rezipped_file(tmp_path: Path) -> None:
    """Unpacked and packed again by hand, with compression."""
    (tmp_path / "net.pt").write_bytes(saved(small_state_dict("seed")))
    with (
        zipfile.ZipFile(tmp_path / "net.pt") as source,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    assert_same(take(tmp_path / "packed.pt").tensors, small_state_dict("seed"))


def test_links_and_pipes_to_other_names(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(saved(small_state_dict("seed")))
    (tmp_path / "link").symlink_to(tmp_path / "net.pt")
    os.link(tmp_path / "net.pt", tmp_path / "Netz mit Umläuten 重み")
    for name in ("link", "Netz mit Umläuten 重み"):
        assert_same(take(tmp_path / name).tensors, small_state_dict("seed"))


def test_the_source_is_known_by_its_hash_and_left_as_it_is(tmp_path: Path) -> None:
    data = saved(small_state_dict("seed"))
    path = tmp_path / "net.pt"
    path.write_bytes(data)
    path.chmod(0o444)
    before = path.stat()
    assert len(read(path).sha256) == 64
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (data, before.st_mtime_ns)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("widths", "last", "blocks"), [((10, 22, 46), 19, (0, 3, 1)), ((24, 24, 26), 64, (2, 0, 0))])
def test_other_widths_and_depths(
    layout: str, widths: tuple[int, ...], last: int, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    if family_fields(layout)["down_left"] == "input":  # each stage is wider than the one before
        widths = tuple(width + 8 * stage for stage, width in enumerate(widths))
    last = 0 if LAYOUTS[layout].last is None else last
    fields = {"stage_widths": widths, "last_width": last, "stage_blocks": blocks}
    tensors = small_state_dict(layout, 751, **fields)
    (tmp_path / "net.pt").write_bytes(saved(tensors))
    net = take(tmp_path / "net.pt")
    found = net.architecture
    assert (found.stage_widths, found.last_width, found.stage_blocks, found.num_classes) == (widths, last, blocks, 751)
    assert_same(net.tensors, tensors)
