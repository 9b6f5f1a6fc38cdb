"""Without the packages of an extra, a command says in one line which extra to install."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("absent", "module", "arguments", "extra"),
    [
        ("torch", "convert", ["net.pt"], "torch"),
        ("torch", "torch_ref", [], "torch"),
        ("torchinfo", "torch_ref", ["--save", "net.pt"], "torch"),
        (
            "matplotlib",
            "flax_shufflenet",
            ["compare", str(ROOT / "results/0.5_fast_30"), "--plot", "runs.png"],
            "train",
        ),
        ("sklearn", "train", ["--dataset", "digits", "--out", "run"], "train"),
        ("orbax", "train", ["--dataset", "digits", "--out", "run"], "train"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    absent: str, module: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    code = (
        f"import runpy, sys; sys.modules[{absent!r}] = None; sys.path.insert(0, {str(ROOT)!r}); "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1, run.stderr
    assert f"needs {absent}" in run.stderr
    assert f"pip install 'flax-shufflenet[{extra}]'" in run.stderr
    assert not list(tmp_path.glob("*.p*"))


def test_streaming_without_what_it_needs_is_one_line(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("one", "two"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(tmp_path / part / name / "image.png")
    code = (
        f"import runpy, sys; sys.modules['grain'] = None; sys.path.insert(0, {str(ROOT)!r}); "
        "runpy.run_module('train', run_name='__main__', alter_sys=True)"
    )
    options = ("--dataset", tmp_path, "--pipeline", "stream", "--out", tmp_path / "run")
    run = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "train.py: this needs grain, which is not installed: pip install 'flax-shufflenet[train]'\n"


def test_every_extra_that_is_advised_is_there() -> None:
    import tomllib

    from flax_shufflenet.errors import _EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(_EXTRAS.values()) <= set(project["optional-dependencies"])
