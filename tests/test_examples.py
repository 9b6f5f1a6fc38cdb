"""The examples run as their first lines say, and do what they are there to show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run_example(folder: Path, name: str, *arguments: str) -> str:
    """What it prints, run from another folder."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def percentage(text: str) -> float:
    """The first figure before a percent sign."""
    found = re.search(r"([\d.]+)%", text)
    assert found, text
    return float(found[1])


def test_a_checkpoint_is_ported_and_proven(tmp_path: Path) -> None:
    output = run_example(tmp_path, "port_a_checkpoint.py")
    assert "found at  model.module" in output
    assert re.search(r"^float64   largest difference [\d.]+e-1[4-6] ", output, re.MULTILINE)
    assert output.endswith("back in PyTorch: 338 tensors, the same bit for bit\n")


def test_a_converted_net_is_fine_tuned_on_a_folder(tmp_path: Path) -> None:
    output = run_example(tmp_path, "fine_tune.py", str(tmp_path))
    assert percentage(output.splitlines()[-1]) > 60
    assert (tmp_path / "run" / "net.safetensors").exists()


def test_a_head_on_the_stages_features_finds_the_square(tmp_path: Path) -> None:
    assert percentage(run_example(tmp_path, "detector_head.py")) > 80


def test_every_example_has_its_test_and_is_short() -> None:
    tests = Path(__file__).read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f'"{path.name}"' in tests
        assert len(path.read_text().splitlines()) <= 70
