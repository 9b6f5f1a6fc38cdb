"""A tiny CIFAR archive in the real one's layout, and builders that expect it."""

import io
import signal
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tensorflow_datasets.core.download.checksums import compute_url_info

from flax_shufflenet.datasets import cifar
from flax_shufflenet.training import loop
from tests.training.random_data import random_dataset

IMAGES_PER_FILE = 7


class TinyCifar(NamedTuple):
    """A folder with an archive, the builder that accepts it, and the bytes that went in: {file: records}."""

    folder: Path
    archive: Path
    builder: type[cifar.Cifar10]
    records: dict[str, np.ndarray]


def tiny_cifar(folder: Path, base: type[cifar.Cifar10]) -> TinyCifar:
    classes = 10 if base is cifar.Cifar10 else 100
    described = base._cifar_info.fget
    assert described is not None
    source = described(type("Named", (), {"name": "cifar"})())
    labels = len(source.label_keys)
    rng = np.random.default_rng(0)
    records, files = {}, {}
    for name in (*source.train_files, *source.test_files):
        records[name] = rng.integers(0, 256, (IMAGES_PER_FILE, labels + 3072), dtype=np.uint8)
        records[name][:, labels - 1] = rng.integers(0, classes, IMAGES_PER_FILE)
        records[name][:, : labels - 1] = rng.integers(0, 20, (IMAGES_PER_FILE, labels - 1))
        files[name] = records[name].tobytes()
    for name, count in zip(source.label_files, [20, 100][-labels:] if labels == 2 else [10], strict=True):
        # The real file ends in an empty line.
        files[name] = "".join(f"{name[:4]}{index}\n" for index in range(count)).encode() + b"\n"
    archive = folder / source.url.rpartition("/")[2]
    with tarfile.open(archive, "w:gz") as tar:
        for name in sorted(files, reverse=True):  # an order of its own, as the real archive has
            member = tarfile.TarInfo(source.prefix + name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    infos = {source.url: compute_url_info(archive)}
    builder: Any = type(base.__name__, (base,), {"url_infos": infos}, skip_registration=True)
    return TinyCifar(folder, archive, builder, records)


@pytest.fixture
def tiny_cifar10(tmp_path):
    return tiny_cifar(tmp_path, cifar.Cifar10)


@pytest.fixture
def tiny_cifar100(tmp_path):
    return tiny_cifar(tmp_path, cifar.Cifar100)


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """No test reads or writes the user's own cache."""
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def without_report(monkeypatch):
    """Runs make no report, which has tests of its own and takes the longest of a tiny run."""
    monkeypatch.setattr(loop, "try_report", lambda *_: None)


@pytest.fixture(scope="session")
def small_dataset():
    return random_dataset(21)


@pytest.fixture(scope="session", autouse=True)
def interrupts_reach_this_process():
    """A shell's background job ignores interrupts; interrupted runs in tests need them, in children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def unoptimised(unoptimised):
    """All of these tests: their programs are compiled in haste, those of the processes that they start are not."""
