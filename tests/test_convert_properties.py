"""Whatever the net's widths and depths and whatever stands around it: it is recognised exactly, and nothing changes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_tools import assert_same, legacy, saved
from fuzz_convert import fuzz
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from convert import mapping
from convert.contents.select import find_net
from convert.errors import ConvertError
from convert.files.read import read
from convert.layouts import LAYOUTS, Layout
from flax_shufflenet import Architecture
from flax_shufflenet.architecture import family_fields

reproducible = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)

layouts = st.sampled_from([layout for layout in LAYOUTS.values() if layout.name != "torchvision"])  # chenyaofo's twin


@st.composite
def architecture_fields(draw: st.DrawFn, layout: Layout) -> dict[str, Any]:
    """Any net that a layout's code can build: few channels, few blocks, any number of classes."""
    fields = family_fields(layout.name)
    stem = draw(st.integers(1, 9))
    widths = []
    for _ in range(3):
        least = (widths[-1] if widths else stem) + 1 if fields["down_left"] == "input" else 2
        width = draw(st.integers(least, least + 14))
        widths.append(max(4, width + width % 2))
    split = 0.5 if fields["shuffle"] == "before" else draw(st.sampled_from([0.5, 0.5, 0.25, 0.3, 0.75]))
    last = 0 if layout.last is None else draw(st.integers(0 if layout.may_end_early else 1, 12))
    classes = draw(st.one_of(st.just(0), st.integers(1, 20), st.just(751)))
    fields["head_bias"] = draw(st.booleans()) if classes else fields["head_bias"]
    return {
        **fields,
        "stage_widths": tuple(widths),
        "stage_blocks": tuple(draw(st.integers(0, 3)) for _ in range(3)),
        "stem_width": stem,
        "last_width": last,
        "num_classes": classes,
        "split_ratio": split,
    }


def draw_architecture(data: st.DataObject, layout: Layout) -> Architecture:
    fields = data.draw(architecture_fields(layout))
    try:
        return Architecture(**fields)
    except ValueError:  # a split that leaves one side empty
        reject()


def random_tensors(layout: Layout, architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Random bits that are finite numbers, variances positive, under a real net's names and shapes."""
    with torch.device("meta"):
        shapes = {name: (t.shape, t.dtype) for name, t in layout.build_reference(architecture).state_dict().items()}
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (shape, dtype) in shapes.items():
        if dtype == torch.int64:
            tensors[name] = torch.tensor(int(generator.integers(0, 2**31)))
            continue
        bits = generator.integers(0, 2**32, tuple(shape), dtype=np.uint32)
        bits &= np.uint32(0xFF7FFFFF)  # no exponent of all ones: neither infinite nor NaN, but denormals and -0
        if name.endswith("running_var"):
            bits &= np.uint32(0x7FFFFFFF)
        tensors[name] = torch.from_numpy(bits.view(np.float32))
    return tensors


def same_split(found: Architecture, original: Architecture) -> bool:
    """Where no ratio is told apart by the widths, another one that passes as many channels is the same net."""
    pairs = zip(found.stage_widths, found.stage_blocks, strict=True)
    return all(found.passed_width(width) == original.passed_width(width) for width, blocks in pairs if blocks)


@pytest.mark.slow
@reproducible
@given(st.data(), layouts, st.integers(0, 2**32))
def test_any_architecture_is_recognised_and_maps_there_and_back(data: st.DataObject, layout: Layout, seed: int) -> None:
    architecture = draw_architecture(data, layout)
    tensors = random_tensors(layout, architecture, seed)
    names = random.Random(seed).sample(list(tensors), len(tensors))  # the order of keys says nothing
    net = find_net({name: tensors[name] for name in names}, **_given(layout))
    assert net.layout is layout
    found = net.architecture
    assert found.stage_blocks == architecture.stage_blocks
    assert same_split(found, architecture)
    for field in ("stage_widths", "stem_width", "last_width", "num_classes", *family_fields(layout.name)):
        if field != "head_bias" or architecture.num_classes:
            assert getattr(found, field) == getattr(architecture, field), field
    assert_same(net.tensors, tensors)
    arrays = mapping.to_arrays(layout, found, net.tensors)
    assert list(arrays) == list(mapping.torch_names(layout, found))
    assert_same(mapping.to_tensors(layout, found, arrays), tensors)


def _given(layout: Layout) -> dict[str, Any]:
    """What the tensors do not tell."""
    return {"chenyaofo": {"stem": "cifar"}, "nanodet": {"activation": "leaky_relu"}}.get(layout.name, {})


@settings(reproducible, max_examples=8)
@given(st.data(), layouts)
def test_the_mapping_knows_every_name_and_shape(data: st.DataObject, layout: Layout) -> None:
    """Against the real module: no tensor is missing, none is left over, and a missing one is named."""
    architecture = draw_architecture(data, layout)
    tensors = random_tensors(layout, architecture, 0)
    mapping.check_names_and_shapes(layout, architecture, tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    del tensors[name]
    try:
        mapping.check_names_and_shapes(layout, architecture, tensors)
    except ConvertError as error:
        assert f"{name} is missing" in str(error)  # noqa: PT017, the refusal is the point
    else:
        raise AssertionError(f"{name} was not missed")


SMALL = Architecture(
    stage_widths=(4, 6, 8),
    stage_blocks=(1, 0, 1),
    stem_width=3,
    last_width=5,
    num_classes=3,
    **family_fields("kuangliu"),
)
prefixes = st.lists(
    st.sampled_from(["module", "_orig_mod", "model", "base_model", "backbone", "0", "1", "net"]), max_size=4
).map(lambda parts: "".join(f"{part}." for part in parts))
keys = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["epoch", "args", "optimizer", "acc", "best_acc"]),
    st.integers(),
    st.booleans(),
)
numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=20))
tensor_junk = st.integers(0, 5).map(torch.ones)
scalars = st.floats(allow_nan=False).map(np.float64)
junk = st.recursive(
    st.one_of(numbers, tensor_junk, scalars),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


def inside(kind: str, beside: dict, place: str, content: object) -> object:
    if kind == "dict":
        return {**beside, place: content}
    around = [*beside.values(), content]
    return around if kind == "list" else tuple(around)


@st.composite
def wrapped(draw: st.DrawFn, tensors: dict[str, torch.Tensor]) -> object:
    """The tensors after a random prefix, at a random place in nested dictionaries, lists and tuples full of junk."""
    prefix = draw(prefixes)
    content: object = {prefix + name: tensor for name, tensor in tensors.items()}
    for _ in range(draw(st.integers(0, 4))):
        beside = draw(st.dictionaries(keys, junk, max_size=3))
        place = draw(st.sampled_from(["net", "state_dict", "model", "runs", "last"]))
        content = inside(draw(st.sampled_from(["dict", "dict", "list", "tuple"])), beside, place, content)
    return content


@settings(reproducible, max_examples=40)
@given(data=st.data())
def test_any_wrapper_and_prefix(data: st.DataObject, tmp_path_factory) -> None:
    tensors = random_tensors(LAYOUTS["kuangliu"], SMALL, 1)
    content = data.draw(wrapped(tensors))
    path = tmp_path_factory.getbasetemp() / "wrapped.pt"
    for write in (saved, legacy):
        path.write_bytes(write(content))
        net = find_net(read(path).content)
        assert_same(net.tensors, tensors)


@settings(reproducible, max_examples=150)
@given(
    data=st.binary(max_size=200),
    beginning=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x00" * 8 + b"{", b"\x80\x02}q\x00("]),
)
def test_any_bytes_are_refused(data: bytes, beginning: bytes, tmp_path_factory) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.pt"
    path.write_bytes(beginning + data)
    try:
        read(path)
    except ConvertError as error:
        assert str(error).isprintable()  # noqa: PT017, any of them will do
    else:
        raise AssertionError("read as a checkpoint")


@pytest.mark.slow
def test_a_few_damaged_checkpoints(tmp_path: Path) -> None:
    """The fuzzer works and finds nothing; its long runs are made by hand."""
    tally = fuzz(runs=60, seed=0, workers=1, layouts=("seed",), keep=tmp_path / "failures")
    assert tally.failures == []
    assert tally.results.total() == 60
    assert tally.results["refused"] > 20
    assert tally.results["converted"] > 0
