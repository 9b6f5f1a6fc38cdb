"""What depends on versions and on the installation: ``nox --list``, ``nox -s "tests-3.14(oldest)"``."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"  # finds the oldest packages that the bounds admit

# The interfaces of JAX, Flax, Optax and Orbax, and the engine. The other tests depend on no version.
TESTS = [f"tests/test_{name}.py" for name in ("ops", "net_parity", "weights", "convert", "extras")]
TRAIN = ["train", "--dataset", "digits", "--net_size", "0.5", "--epochs", "1", "--batch_size", "128"]


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
@nox.parametrize("packages", ["oldest", "newest"], ids=["oldest", "newest"])
def tests(session: nox.Session, packages: str) -> None:
    """Tests with the oldest or the newest packages that pyproject.toml admits, and a short training."""
    resolution = {"oldest": "lowest-direct", "newest": "highest"}[packages]
    session.install("promise")  # of the dependencies, it alone has no wheel
    session.install("--no-build", "--resolution", resolution, "-e", ".[test]")
    session.run("pytest", *(session.posargs or TESTS))
    session.run("flax-shufflenet", *TRAIN, "--out", str(Path(session.create_tmp()) / "run"), "--force")
