"""What is refused: with one line that says why and what to do, nothing run, nothing written, in bounded memory."""

import argparse
import functools
import gzip
import io
import json
import marshal
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_tools import all_formats, legacy, saved, small_state_dict, take
from convert_tools import run_convert, small_architecture

import convert
from convert import mapping
from convert.contents.select import find_net
from convert.files.inert_archives import LEGACY_MAGIC
from convert.files.read import read
from convert.layouts import LAYOUTS
from flax_shufflenet.weights import ARCHITECTURE_KEY, to_bytes

ROOT = Path(__file__).parent.parent


def seed_with(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The seed's tensors with some changed; dots in names are written as __."""
    tensors = small_state_dict("seed")
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    return tensors


def without(tensors: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def repacked(data: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A zip file with some entries replaced; they are given by the end of their names, with __ for dots."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", compression) as target:
        for name in source.namelist():
            ending = next((end for end in entries if name.endswith("/" + end.replace("__", "."))), None)
            target.writestr(name, source.read(name) if ending is None else entries[ending])
    return buffer.getvalue()


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


MARK = "touched"  # what an executed pickle would leave in the working directory
ATTACKS: dict[str, tuple[Callable[..., object], tuple[object, ...], str]] = {
    "os.system": (os.system, (f"touch {MARK}",), "posix.system"),
    "eval": (eval, (f"open('{MARK}', 'w')",), "builtins.eval"),
    "exec": (exec, (f"open('{MARK}', 'w')",), "builtins.exec"),
    "getattr": (getattr, ("", "join"), "builtins.getattr"),
    "open": (open, (MARK, "w"), "io.open"),
    "subprocess": (subprocess.Popen, (["touch", MARK],), "subprocess.Popen"),
    "another unpickler": (marshal.loads, (b"i",), "marshal.loads"),
    "torch.load": (torch.load, (MARK,), "torch.serialization.load"),
    "torch.hub": (torch.hub.load, ("a/b", "c"), "torch.hub.load"),
}


@functools.cache
def pt2() -> bytes:
    return all_formats("seed")["pt2"]


def pt2_with(**changes: object) -> bytes:
    """The exported program with fields of the first tensor's entry changed."""
    with zipfile.ZipFile(io.BytesIO(pt2())) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        config = json.loads(archive.read(name))
    entry = config["config"]["conv1.weight"]
    for field, value in changes.items():
        (entry if field in entry else entry["tensor_meta"])[field] = value
    return repacked(pt2(), model_weights_config__json=json.dumps(config).encode())


def assert_refused(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> str:
    """Runs the command on a file; the reason it gives."""
    before = sorted(path.parent.iterdir())
    start = time.monotonic()
    outcome = run_convert(capsys, path, *options)
    assert time.monotonic() - start < 10
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"convert: {path}: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.isprintable() or outcome.err[:-1].isprintable()
    assert "Traceback" not in outcome.err
    assert sorted(path.parent.iterdir()) == before
    return outcome.err.removeprefix(f"convert: {path}: ").strip()


@pytest.mark.parametrize("attack", ATTACKS)
def test_pickles_that_try_to_run_something(
    attack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function, arguments, name = ATTACKS[attack]
    content = {"net": small_state_dict("seed"), "x": Calls(function, *arguments)}
    script = all_formats("seed")["torchscript"]
    files = {
        "zip": saved(content),
        "protocol 4": saved(content, pickle_protocol=4),
        "legacy": legacy(content),
        "TorchScript": repacked(script, data__pkl=pickle.dumps(content["x"], 2)),
        "TorchScript constants": repacked(script, constants__pkl=pickle.dumps(content["x"], 2)),
    }
    for form, data in files.items():
        path = tmp_path / "net.pt"
        path.write_bytes(data)
        if form == "TorchScript constants":  # which nothing reads
            take(path)
        else:
            reason = assert_refused(capsys, path)
            assert reason.startswith(f"needs to run {name}, which a file of data has no business with")
        assert not (tmp_path / MARK).exists()


def test_pickled_weights_in_an_exported_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pt2").write_bytes(pt2_with(use_pickle=True))
    assert "pickled weights, which could run code; save its state_dict" in assert_refused(capsys, tmp_path / "net.pt2")


def test_old_exported_programs_are_no_way_around(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("serialized_state_dict.pt", saved(Calls(os.system, "touch x")))
    assert "needs to run posix.system" in assert_refused(capsys, tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("serialized_state_dict.pt", all_formats("seed")["torchscript"])
    assert "with a TorchScript archive for its weights" in assert_refused(capsys, tmp_path / "net.pt2")


def quantised() -> dict[str, torch.Tensor]:
    tensors = small_state_dict("seed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files are about
        weight = torch.quantize_per_tensor(tensors["conv2.weight"], 0.1, 0, torch.qint8)
    return {**tensors, "conv2.weight": weight, "conv2._packed_params.dtype": torch.tensor(1)}


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # Not checkpoints at all
    "empty": (lambda: b"", "the file is empty; copy or download it again"),
    "one byte": (lambda: b"\x80", "a bare pickle"),
    "Git-LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "HTML after blanks": (lambda: b"\r\n\n  <html><body>404</body></html>", "a web page"),
    "text": (lambda: b"Not found", "a text file, which begins 'Not found'; perhaps a download"),
    "JSON": (lambda: b'{"error": "no such file", "code": 404}', "a text file, which begins"),
    "gzip": (lambda: gzip.compress(saved(small_state_dict("seed"))), "gzip-compressed; unpack it first"),
    "NumPy": (lambda: _numpy(np.save), "a NumPy array"),
    "NumPy's zip": (lambda: _numpy(np.savez), "NumPy's archive of arrays"),
    "ONNX": (lambda: b"\x08\x07\x12\x07pytorch\x1a\x032.1", "an ONNX model, it seems"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "bare pickle": (lambda: pickle.dumps({"a": 1}), "a bare pickle"),
    "noise": (lambda: random.Random(0).randbytes(4096), "not a checkpoint"),
    "zeros": (lambda: bytes(4096), "not a checkpoint"),
    # Other content
    "a number": (lambda: saved(3), "looks like a lone int"),
    "a tensor": (lambda: saved(torch.ones(3)), "looks like a lone Tensor"),
    "a namespace": (lambda: saved(argparse.Namespace(a=1)), "looks like a lone object without tensors"),
    "no tensors": (lambda: saved({"epoch": 3, "acc": 0.5}), "a dictionary without tensors, with the keys epoch; acc"),
    "no entries": (lambda: saved({}), "an empty dictionary"),
    "frozen": (lambda: _frozen(), "a TorchScript archive without parameters; save the net's state_dict() before"),
    "quantised": (lambda: saved(quantised()), "an int8-quantised net; save the float net's state_dict()"),
    "quantised, legacy": (lambda: legacy(quantised()), "an int8-quantised net; save the float net's state_dict()"),
    "sparse": (lambda: saved(seed_with(conv1__weight=torch.zeros(8, 3).to_sparse())), "a sparse tensor"),
    "meta": (lambda: saved(seed_with(conv1__weight=torch.zeros(8, 3, 3, 3, device="meta"))), "the meta device"),
    # Other nets
    "ResNet": (lambda: saved(_named("layer1.0.conv1.weight", "layer1.0.downsample.0.weight")), "a ResNet"),
    "MobileNetV2": (lambda: saved(_named("features.0.0.weight", "features.1.conv.0.0.weight")), "MobileNetV2"),
    "VGG": (lambda: saved(_named("features.0.weight", "classifier.6.weight")), "a VGG net or AlexNet"),
    "ShuffleNet 1": (lambda: saved(_named("stage2.0.g_conv_1x1_compress.weight")), "ShuffleNet version 1"),
    "a transformer": (lambda: saved(_named("blocks.0.attn.qkv.weight")), "a vision transformer"),
    "packed": (lambda: saved({**_named("layer1.0.weight"), "fc._packed_params": (torch.ones(2), None)}), "int8"),
    "unknown": (lambda: saved(_named("a.b", "c.d", "e", "f")), "tensors such as a.b; c.d; e and 1 more"),
    # Tensors of the net
    "missing": (
        lambda: saved(without(small_state_dict("seed"), "layer2.1.conv2.weight", "layer2.1.bn2.running_mean")),
        "do not make a seed ShuffleNetV2: layer2.1.conv2.weight is missing; layer2.1.bn2.running_mean is missing",
    ),
    "missing stem": (lambda: saved(without(small_state_dict("seed"), "conv1.weight")), "conv1.weight is missing"),
    "missing after the last convolution": (
        lambda: saved(without(small_state_dict("nanodet", last_width=40), "stage4.conv5.1.weight")),
        "stage4.conv5.1.weight is missing",
    ),
    "extra": (
        lambda: saved(seed_with(bn9__weight=torch.ones(3), **{f"a{i}": torch.ones(1) for i in range(5)})),
        "bn9.weight belongs to no part of the net; a0 belongs to no part of the net; a1 belongs to no part of the net "
        "and 3 more; --backbone",
    ),
    "mis-shaped": (
        lambda: saved(seed_with(layer1__0__branch1__0__weight=torch.ones(8, 1, 5, 5), bn2__bias=torch.ones(7))),
        "layer1.0.branch1.0.weight has shape [8, 1, 5, 5], not [8, 1, 3, 3]; bn2.bias has shape [7], not [40]",
    ),
    "mis-shaped head": (
        lambda: saved(seed_with(classifier__weight=torch.ones(10, 41))),
        "classifier.weight has shape [10, 41], not [10, 40]",
    ),
    "a head that is a vector": (lambda: saved(seed_with(classifier__weight=torch.ones(10))), "has shape [10]"),
    "a head that is a number": (lambda: saved(seed_with(classifier__weight=torch.tensor(1.0))), "has shape []"),
    "a matrix for a kernel": (lambda: saved(seed_with(conv1__weight=torch.ones(8, 27))), "has shape [8, 27]"),
    "kernels without numbers": (
        lambda: saved(seed_with(layer1__0__branch1__2__weight=torch.ones(0, 8, 1, 1),
                                layer1__0__branch2__4__weight=torch.ones(0, 16, 1, 1))),
        "layer1.0.branch1.2.weight has shape [0, 8, 1, 1]",
    ),
    "uneven stage": (
        lambda: saved(seed_with(layer1__0__branch1__2__weight=torch.ones(17, 8, 1, 1))), "no single split ratio"
    ),
    # Values
    "NaN": (lambda: saved(_with_value("conv1.weight", np.nan)), "conv1.weight is not finite"),
    "infinite": (lambda: saved(_with_value("bn2.running_mean", np.inf)), "bn2.running_mean is not finite"),
    "infinite half": (
        lambda: saved({n: t.half() for n, t in _with_value("bn2.weight", 1e9).items()}), "bn2.weight is not finite"
    ),
    "negative variance": (lambda: saved(_with_value("bn1.running_var", -1e-9)), "running_var is negative in places"),
    "negative count": (lambda: saved(_with_value("bn1.num_batches_tracked", -1)), "bn1.num_batches_tracked is -1, not"),
    "half a count": (
        lambda: saved(seed_with(bn1__num_batches_tracked=torch.tensor(0.5))), "bn1.num_batches_tracked is 0.5, not"
    ),
    "huge count": (lambda: saved(_with_value("bn1.num_batches_tracked", 2**40)), "not a count that int32 holds"),
    "two counts": (lambda: saved(seed_with(bn1__num_batches_tracked=torch.ones(2).long())), "not one whole number"),
    "complex": (lambda: saved(seed_with(conv1__weight=torch.ones(8, 3, 3, 3) * 1j)), "is torch.complex64"),
    "integers": (lambda: saved(seed_with(conv1__weight=torch.ones(8, 3, 3, 3).int())), "is torch.int32; weights are"),
    "float8": (
        lambda: saved(seed_with(conv1__weight=torch.ones(8, 3, 3, 3).to(torch.float8_e5m2))), "is torch.float8_e5m2"
    ),
    "mixed float64": (lambda: saved(seed_with(bn1__weight=torch.ones(8).double())), "make them all one dtype"),
    # Claims
    "stride 0": (lambda: saved(seed_with(conv1__weight=torch.ones(1).expand(8, 3, 3, 3))), "save a clone() of it"),
    "stride 0, huge": (lambda: saved({"a": torch.ones(1).expand(10**6, 10**6)}), "claims more than the 4 bytes stored"),
    "stride 0, legacy": (lambda: legacy({"a": torch.ones(1).expand(10**6, 10**6)}), "claims more than the 4 bytes"),
    "legacy storage": (lambda: _legacy_claim(2**40), "claims tensors of 4,398,046,511,"),
    "negative storage": (lambda: _legacy_claim(-(2**40)), "the file is damaged (a storage of no size)"),
    "pt2 size": (lambda: pt2_with(sizes=[{"as_int": 10**9}] * 2, strides=[{"as_int": 0}] * 2), "claims more than the"),
    "pt2 offset": (lambda: pt2_with(storage_offset={"as_int": 10**9}), "claims more than the"),
    "pt2 negative": (lambda: pt2_with(storage_offset={"as_int": -1}), "an impossible size"),
    "pt2 dtype": (lambda: pt2_with(dtype=99), "a damaged exported program (KeyError)"),
    "pt2 path": (lambda: pt2_with(path_name="../../../etc/passwd"), "is missing"),
    "pt2 config": (lambda: repacked(pt2(), model_weights_config__json=b"[" * 10**5), "a damaged exported program"),
    "pt2 with two nets": (lambda: _second_config(), "an exported program with 2 sets of weights"),
    "zip bomb": (
        lambda: repacked(saved({"a": torch.ones(1)}), zipfile.ZIP_DEFLATED, **{"0": bytes(10**8)}), "claims to unpack"
    ),
    "pickle bomb": (
        lambda: repacked(saved({}), zipfile.ZIP_DEFLATED, data__pkl=b"\x80\x02" + b"N" * 10**7), "too many for"
    ),
    "bzip2": (
        lambda: repacked(saved({"a": torch.ones(1)}), zipfile.ZIP_BZIP2), "compressed in a way that PyTorch does not"
    ),
    "many entries": (lambda: saved({}) + b"PK\x01\x02" * 60_000, "more than 50,000 entries"),
    "memo": (lambda: _pickled(b"\x80\x02}r\xff\xff\xff\xff."), "an empty dictionary"),
    "long text": (lambda: _pickled(b"\x80\x02X\xff\xff\xff\xffabc."), "the file is damaged"),
    "long bytes": (lambda: _pickled(b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b"."), "the file is damaged"),
    "bytearray": (lambda: _pickled(b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"."), "the file is damaged"),
    "nested lists": (lambda: _pickled(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."), "a lone list"),
    "nested dictionaries": (
        lambda: _pickled(b"\x80\x02" + b"}K\x01" * 10**5 + b"}" + b"s" * 10**5 + b"."), "a dictionary without tensors"
    ),
    "nested keys": (
        lambda: _pickled(b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"K\x01s."), "an empty dictionary"
    ),
    "nested calls": (
        lambda: _pickled(b"\x80\x02" + b"ctorch._tensor\n_rebuild_from_type_v2\n" * 2 + b"N)N(tR."), "is damaged"
    ),
    "a dictionary in itself": (lambda: _pickled(b"\x80\x02}q\x00K\x01h\x00s."), "a dictionary without tensors"),
    "dictionaries that share": (lambda: saved(_shared_dictionaries()), "another net, with tensors such as x"),
    "tensors that share": (
        lambda: saved({f"{i}.{LAYOUTS['chenyaofo'].fingerprint}": torch.ones(1) for i in range(200)}),
        "more than 100 nets",
    ),
    "control characters": (
        lambda: saved({"\x1b[31m\n\u202e\ud800" + "x" * 10**5: torch.ones(1)}), r"such as \x1b[31m\n\u202e\ud800xxx"
    ),
    "module bomb": (lambda: _module_in_itself("n"), "modules in each other, or one that is in itself"),
    "module bomb of long names": (lambda: _module_in_itself("n" * 100), "a name of more than 1,000 characters"),
    "module bomb of many names": (lambda: _module_in_many_places(), "more than 50,000 names in its modules"),
    "TorchScript module bomb": (
        lambda: repacked(
            all_formats("seed")["torchscript"], data__pkl=_object("__torch__", _text("n") + b"h\x00s")
        ),
        "modules in each other, or one that is in itself",
    ),
    "set bomb": (lambda: _called_again("builtins", "set", 3000), "copies of more than 1,000,000 items"),
    "dictionary bomb": (lambda: _called_again("collections", "OrderedDict", 3000), "copies of more than 1,000,000"),
    "bomb of tensors built as sets": (lambda: _subclass_of_sets(), "a tensor that is built like none"),
    "state bomb": (lambda: _one_state(3000), "copies of more than 1,000,000 items"),
    "argument bomb": (lambda: _called_again("torch", "Size", 3000, wrapped=False), "copies of more than 1,000,000"),
    "name bomb": (
        lambda: _pickled(b"\x80\x04]" + _text("n" * 10**6) + b"q\x00" + b"h\x00h\x00\x93a" * 1000 + b"."),
        "a name beyond all measure",
    ),
    "deflate bomb": (lambda: _deflated(500), "on a big-endian machine"),
    "archive bomb in an exported program": (
        lambda: _archive({"serialized_state_dict.pt": _archive({"pad": bytes(12 << 20)}, zipfile.ZIP_STORED)
                          .replace(struct.pack("<I", 12 << 20), struct.pack("<I", 100 << 20))}),
        "claims to unpack from",
    ),
    "an exported program in another": (
        lambda: _archive({"serialized_state_dict.pt": _archive({"serialized_state_dict.pt": saved({})})}),
        "a zip archive with checkpoints in it",
    ),
    "empty storages": (lambda: _empty_storages(30_000), "tensors without values"),
    "numbers of one hash": (lambda: _keys(*(number * (2**61 - 1) for number in range(1, 10))), "for a key"),
    "a long number": (lambda: _pickled(b"\x80\x02\x8a\x80" + bytes(127) + b"\x01."), "holds a number of 128 bytes"),
    "a longer number": (lambda: saved({"a": 10**5000}), "holds a number of 2,077 bytes"),
    "a key of control characters": (lambda: saved({"net\n": quantised()["conv1.weight"]}), r"such as net\n"),
    "safetensors header": (lambda: struct.pack("<Q", 2**50) + b'{"a":1}', "cut off in its header"),
    "safetensors names": (lambda: _safetensors_claim(10**12), "a damaged safetensors file"),
    "safetensors nesting": (
        lambda: struct.pack("<Q", 10**5) + b'{"a":' + b"[" * (10**5 - 5), "a damaged safetensors file"
    ),
    "big-endian": (lambda: repacked(saved(small_state_dict("seed")), byteorder=b"big"), "on a big-endian machine"),
}  # fmt: skip


def _numpy(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.ones(3))
    return buffer.getvalue()


def _frozen() -> bytes:
    return repacked(all_formats("seed")["torchscript"], data__pkl=b"\x80\x02c__torch__\nNet\n)\x81}b.")


def _named(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(2) for name in names}


def _with_value(name: str, value: float) -> dict[str, torch.Tensor]:
    tensors = small_state_dict("seed")
    tensors[name].view(-1)[-1] = value
    return tensors


def _pickled(pickled: bytes) -> bytes:
    return repacked(saved({}), data__pkl=pickled)


def _legacy_claim(count: int) -> bytes:
    """A legacy file whose only storage claims so many float32 numbers."""
    data = legacy({"a": torch.ones(3)})
    claim = pickle.dumps(count, 2)[2:-1]
    position = data.index(b"X\x03\x00\x00\x00cpu") + 8
    start = data.index(b"K\x03", position)
    return data[:start] + claim + data[start + 2 :]


def _text(text: str) -> bytes:
    """As a pickle has it."""
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _object(module: str, state: bytes) -> bytes:
    """The pickle of an object, which the state may take from place 0 of the memo."""
    return b"\x80\x02c" + module.encode() + b"\nNet\n)\x81q\x00}" + state + b"b."


def _module_state(children: bytes, parameters: bytes = b"") -> bytes:
    state = ((b"_parameters", parameters), (b"_buffers", b""), (b"_modules", children))
    return b"".join(_text(kind.decode()) + b"}" + items + b"s" for kind, items in state)


def _module_in_itself(name: str) -> bytes:
    return _pickled(_object("nets", _module_state(_text(name) + b"h\x00s")))


def _module_in_many_places() -> bytes:
    """20 times in another, with 3,000 names."""
    names = b"(" + b"".join(_text(f"{number:04}") + b"N" for number in range(3000)) + b"u"
    many = b"cnets\nNet\n)\x81}" + _module_state(b"", names) + b"bq\x010"
    return _pickled(
        b"\x80\x02" + many + _object("nets", _module_state(b"".join(_text(str(n)) + b"h\x01s" for n in range(20))))[2:]
    )


def _called_again(module: str, name: str, count: int, *, wrapped: bool = True) -> bytes:
    """A function called so often with so many items."""
    texts = b"".join(_text(f"{number:04}") + (b"N\x86" if name == "OrderedDict" else b"") for number in range(count))
    items = b"](" + texts + b"eq\x00" if wrapped else b"(" + texts + b"tq\x00"
    call = b"h\x01h\x00" + (b"\x85R" if wrapped else b"R")
    return _pickled(b"\x80\x02" + items + f"c{module}\n{name}\nq\x01".encode() + b"](" + call * count + b"e.")


def _subclass_of_sets() -> bytes:
    return _pickled(b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nset\nN]\x85NtR.")


def _one_state(count: int) -> bytes:
    """As many objects as their one state has entries."""
    state = b"}(" + b"".join(_text(f"{number:04}") + b"N" for number in range(count)) + b"uq\x00"
    return _pickled(b"\x80\x02" + state + b"cargparse\nNamespace\nq\x01](" + b"h\x01)\x81h\x00b" * count + b"e.")


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _deflated(megabytes: int) -> bytes:
    """An entry that unpacks to so many zeros, and is said to have as many bytes as are stored."""
    pack = zlib.compressobj(wbits=-15)
    once = pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH)
    data = bytearray(_archive({"net/byteorder": once * megabytes + pack.flush()}, zipfile.ZIP_STORED))
    for header, method, crc in ((b"PK\x03\x04", 8, 14), (b"PK\x01\x02", 10, 16)):
        start = data.rindex(header)
        data[start + method : start + method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        data[start + crc : start + crc + 4] = bytes(4)
    return bytes(data)


def _empty_storages(count: int) -> bytes:
    """A legacy file of so many storages without a number in them."""
    storages = b"".join(b"(h\x00h\x01" + _text(str(number)) + b"h\x00K\x00NtQ" for number in range(count))
    content = b"\x80\x02" + _text("storage") + b"q\x000ctorch\nFloatStorage\nq\x010](" + storages + b"e."
    return LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + content + b"\x80\x02]."


def _keys(*numbers: int) -> bytes:
    keys = b"".join(b"\x8a\x0b" + number.to_bytes(11, "little") + b"N" for number in numbers)
    return _pickled(b"\x80\x02}(" + keys + b"u.")


def _second_config() -> bytes:
    buffer = io.BytesIO(pt2())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("net/data/weights/other_weights_config.json", b"{}")
    return buffer.getvalue()


def _shared_dictionaries() -> dict[str, object]:
    content: dict[str, object] = {"x": torch.ones(1)}
    for _ in range(7):
        content = {str(number): content for number in range(50)}
    return content


def _safetensors_claim(size: int) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, reason = FILES[case]
    path = tmp_path / "net.pt"
    path.write_bytes(make())
    assert reason in assert_refused(capsys, path)


def test_files_cut_off_anywhere(tmp_path: Path) -> None:
    """Every format, at its first and last bytes and at random ones."""
    choose = random.Random(0)
    for form, data in all_formats("seed").items():
        path = tmp_path / form
        inside = [choose.randrange(len(data)) for _ in range(30)]
        for length in (*range(0, 24, 3), *inside, *range(len(data) - 24, len(data), 3)):
            path.write_bytes(data[:length])
            with pytest.raises(convert.ConvertError) as refusal:
                read(path)
            assert str(refusal.value).startswith(f"{path}: ")
            assert str(refusal.value).isprintable()


def test_weights_that_were_altered_are_noticed(tmp_path: Path) -> None:
    """Zip files carry checksums of their tensors."""
    tensors = small_state_dict("seed")
    data = bytearray(saved(tensors))
    data[data.index(tensors["conv2.weight"].numpy().tobytes()) + 100] ^= 1
    (tmp_path / "net.pt").write_bytes(data)
    with pytest.raises(convert.ConvertError, match=r"data/\d+ cannot be read \(Bad CRC-32 .*copy or download it again"):
        read(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "a folder; name the checkpoint file in it"),
        ("circle", "a link that leads back to itself"),
        ("dangling", "a link to {folder}/nowhere, where there is no file"),
        ("nothing", "no such file"),
        ("fifo", "not a regular file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_names_that_are_no_files(name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "circle")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    assert assert_refused(capsys, tmp_path / name) == reason.format(folder=tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(saved(small_state_dict("seed")))
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        with pytest.raises(convert.ConvertError, match=r"net\.pt: may not be read; check its permissions"):
            read(path)
    finally:
        os.seteuid(user)


def test_names_with_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_convert(capsys, tmp_path / "a\nb\x1b[31m.pt")
    assert (outcome.code, outcome.err) == (1, f"convert: {tmp_path}/a\\nb\\x1b[31m.pt: no such file\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--stem", "cifar"],
            "--stem is for torchvision's and chenyaofo's names; this is a seed checkpoint, leave it out",
        ),
        (["--key", "ema"], "no ShuffleNetV2 at --key ema; there is one at: top level"),
        (["--use_ema"], "--use_ema: there are no averaged weights in this file; leave it out"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt").write_bytes(saved(small_state_dict("seed")))
    assert assert_refused(capsys, tmp_path / "net.pt", *options) == reason


def test_nets_that_options_cannot_choose() -> None:
    one, other = small_state_dict("seed"), small_state_dict("seed")
    with pytest.raises(convert.ConvertError, match="--use_ema: by its name, what is at --key model is not averaged"):
        find_net({"model": one, "model_ema": other}, key="model", use_ema=True)
    assert "found at: model_ema" in find_net({"model": one, "model_ema": other}, key="model_ema", use_ema=True).notes
    same = {"a": {f"b.{name}": tensor for name, tensor in one.items()}, "a.b": other}
    for key in (None, "a.b"):
        with pytest.raises(
            convert.ConvertError, match=r"holds 2 nets at a\.b, which --key cannot tell apart; save the"
        ):
            find_net(same, key=key)


def test_masks_that_are_none_beside_the_net() -> None:
    """Those of another net, or of what is none, are not looked at."""
    tensors = small_state_dict("seed")
    masked = {"conv1.weight_orig": tensors["conv1.weight"], "conv1.weight_mask": torch.full((8, 3, 3, 3), 0.5)}
    other = {**without(tensors, "conv1.weight"), **masked}
    assert find_net({"net": tensors, "w": {"w_orig": torch.ones(3), "w_mask": torch.full((3,), 0.5)}}).notes
    assert find_net({"net": tensors, "other": other}, key="net").notes
    with pytest.raises(convert.ConvertError, match=r"conv1\.weight_mask has other values than 0 and 1"):
        find_net({"net": tensors, "other": other}, key="other")


def test_outputs_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pt").write_bytes(saved(small_state_dict("seed")))
    (tmp_path / "taken").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for output, reason in {
        "fifo": "exists and is no regular file, which is not overwritten; name another",
        "taken": "exists; name another output, or overwrite it with --force",
        "net.pt": "exists; name another output, or overwrite it with --force",
        "folder": "a folder; name a file",
        "nowhere/out": "there is no folder",
        "taken/out": "there is no folder",
    }.items():
        force = ["--force"] * (output == "fifo")
        outcome = run_convert(capsys, tmp_path / "net.pt", "-o", tmp_path / output, *force)
        assert outcome.code == 1
        assert outcome.err.startswith(f"convert: {tmp_path / output}: {reason}")
    assert (tmp_path / "taken").read_bytes() == b"mine"
    assert (tmp_path / "fifo").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder", "net.pt", "taken"]


def flax_file(metadata: dict[str, str] | None = None, **changes: object) -> bytes:
    """A Flax net with changes to its architecture, or with other metadata."""
    architecture = small_architecture("seed")
    arrays = mapping.to_arrays(LAYOUTS["seed"], architecture, small_state_dict("seed"))
    described = {**json.loads(architecture.to_json()), **changes}
    data = to_bytes(architecture, arrays, {})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header["__metadata__"] = {ARCHITECTURE_KEY: json.dumps(described), "layout": "seed", **(metadata or {})}
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + int.from_bytes(data[:8], "little") :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: flax_file({ARCHITECTURE_KEY: "["}), "Expecting value"),
        (lambda: flax_file({ARCHITECTURE_KEY: "[" * 10**5}), "lists within lists beyond all measure"),
        (lambda: flax_file(num_classes=3), "classifier.kernel has shape [40, 10], not [40, 3]"),
        (lambda: flax_file(stage_blocks=[10**8, 2, 1]), "more blocks than the file has arrays"),
        (lambda: flax_file(stage_widths=[2**62, 64, 128]), "a net of these widths has more than"),
        (lambda: flax_file(split_ratio=1.5), "leaves one half of 32 channels empty"),
        (
            lambda: flax_file({"layout": "VGG"}),
            "the layout that it came in is said to be VGG, which is none; the file is damaged or altered, name",
        ),
        (lambda: flax_file({"layout": "kuangliu"}), "the kuangliu layout cannot hold this net"),
        (lambda: _flax_bfloat16(), "holds bfloat16, float32, int32; a net's weights are all float32 or all float64"),
    ],
)
def test_flax_files(data: Callable[[], bytes], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(data())
    assert reason in assert_refused(capsys, path)


def _flax_bfloat16() -> bytes:
    data = flax_file()
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    changed = {**tensors, "classifier.kernel": tensors["classifier.kernel"].bfloat16()}
    return safetensors.torch.save(changed, header["__metadata__"])


@pytest.mark.parametrize("option", [["--stem", "cifar"], ["--key", "a"], ["--use_ema"], ["--backbone"]])
def test_options_that_no_flax_net_has(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(flax_file())
    assert assert_refused(capsys, path, *option) == f"a Flax net; {option[0]} is for PyTorch checkpoints, leave it out"


def test_dictionaries_in_memory() -> None:
    """Tensors that no file can hold, or that are refused already where a file is read."""
    kernel = torch.ones(8, 3, 3, 3)
    for tensor, reason in (
        (kernel.to_sparse(), "a sparse_coo tensor on device cpu; make it a plain one"),
        (kernel.to("meta"), "a strided tensor on device meta; make it a plain one"),
        (quantised()["conv2.weight"], "int8-quantised; save the float net's state_dict()"),
        (torch.ones(1).expand(8, 3, 3, 3), "more than is stored of it; save a clone() of it"),
        (torch.view_as_complex(torch.ones(8, 3, 3, 3, 2)).conj(), "torch.complex64; weights are real"),
    ):
        with pytest.raises(convert.ConvertError, match=rf"^state_dict: conv1\.weight is .*{re.escape(reason)}"):
            convert.load_torch(seed_with(conv1__weight=tensor))
    deep = small_state_dict("seed", stage_blocks=(1, 2, 9))
    few = torch.ones(max(tensor.numel() for tensor in deep.values()))
    shared = {name: few[: t.numel()].view(t.shape) if t.is_floating_point() else t for name, t in deep.items()}
    with pytest.raises(convert.ConvertError, match=r"tensors of [\d,]+ bytes share [\d,]+; save a clone\(\) of each"):
        convert.load_torch(shared)


def test_the_command_itself_on_a_pickle_that_tries_to_run_something(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(saved(Calls(os.system, f"touch {tmp_path / MARK}")))
    run = subprocess.run(
        [sys.executable, "-m", "convert", path], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(f"convert: {path}: needs to run posix.system")
    assert run.stderr.count("\n") == 1
    assert [name.name for name in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["net.pt", "--to", "nowhere"], 2)])
def test_help_and_a_wrong_command_line_wait_for_neither_torch_nor_jax(arguments: list[str], code: int) -> None:
    program = f"""
import atexit, sys
atexit.register(lambda: print(*sorted({{"torch", "jax"}} & sys.modules.keys())))
sys.argv[1:] = {arguments}
from convert.__main__ import main
sys.exit(main())
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    assert "FILE" in run.stdout if code == 0 else "nowhere" in run.stderr
    assert run.stderr.count("\n") == (code > 0)
    assert run.stdout.splitlines()[-1] == ""


def test_memory_is_bounded_by_the_files_size(tmp_path: Path) -> None:
    """In a process that may have no more than a fraction of what the files claim."""
    words = ("bomb", "stride", "storage", "memo", "long", "nested", "bytearray", "share", "entries", "header", "size")
    cases = [case for case in FILES if any(word in case for word in words)]
    for case in cases:
        (tmp_path / case).write_bytes(FILES[case][0]())
    program = """
import resource, sys
from convert import ConvertError
from convert.files.read import read
from convert.contents.select import find_net

size = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
allowed = int(size.split()[1]) * 1024 + (400 << 20)
resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
for path in sys.argv[1:]:
    try:
        find_net(read(path).content)
    except ConvertError as error:
        print(error)
"""
    paths = [tmp_path / case for case in cases]
    run = subprocess.run(
        [sys.executable, "-c", program, *paths], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    for case, line in zip(cases, run.stdout.splitlines(), strict=True):
        assert FILES[case][1] in line


@pytest.mark.parametrize("backbone", [False, True])
@pytest.mark.parametrize("layout", ["torchvision", "seed", "megvii", "mmpretrain", "pytorchcv", "birder"])
def test_a_layer_inside_the_backbone_that_the_layout_does_not_have_is_refused(layout: str, backbone: bool) -> None:
    """Such as squeeze-and-excitation: without it, the rest is another net."""
    tensors = small_state_dict(layout)
    own = LAYOUTS[layout]
    inside = f"{own.block_name(1, 1, 2)}.se.fc.0.weight"
    with pytest.raises(convert.ConvertError, match=r" inside the net \(.* cannot be converted") as refusal:
        find_net({**tensors, inside: torch.zeros(4, 4, 1, 1)}, backbone=backbone)
    assert inside in str(refusal.value)
    assert "--backbone" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "copy.pth"], "a Flax net is a safetensors file; end its name in .safetensors"),
        (["-o", "net.pt"], "is the input and the output as well"),
        (["--to", "kuangliu", "-o", "copy.safetensors"], "end its name in .pt"),
        (["-o", "a.safetensors", "--report", "a.safetensors"], "is the output and --report as well"),
        (["--report", "link.md"], "is the input and --report as well"),
    ],
)
def test_no_file_gets_the_wrong_name_or_is_written_over_by_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    net = tmp_path / "net.pt"
    net.write_bytes(saved(small_state_dict("seed")))
    (tmp_path / "link.md").symlink_to(net)
    before = net.read_bytes()
    paths = [option if option.startswith("-") or option == "kuangliu" else tmp_path / option for option in options]
    outcome = run_convert(capsys, net, *paths, "--force")
    assert outcome.code == 1
    assert said in outcome.err
    assert net.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.md", "net.pt"]
