"""The versions that pyproject.toml admits."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from flax_shufflenet import ops

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("flax_shufflenet", "convert", "torch_ref")


def bounds_of(requirements: list[str]) -> dict[str, str]:
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*)", requirement)
        assert match, requirement
        name, bounds = match.groups()
        found[name.replace("-", "_")] = bounds
    return found


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_whose_private_modules_are_imported_has_an_upper_bound() -> None:
    """The next minor version may have moved them; whoever lifts the bound looks at them first."""
    private = {
        name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path)
        if "._" in name and name.partition(".")[0] not in PACKAGES
    }
    assert private == {"jax._src.distributed"}
    bounds = bounds_of(PROJECT["project"]["dependencies"])
    assert all("<" in bounds[name.partition(".")[0]] for name in private)


def test_the_engine_is_built_with_the_oldest_jaxlib_that_it_runs_with() -> None:
    """A jaxlib takes what was built with an earlier one's headers, and refuses what was built with a later one's."""
    built = bounds_of(PROJECT["build-system"]["requires"])["jaxlib"]
    oldest, _ = bounds_of(PROJECT["project"]["dependencies"])["jax"].split(",")
    major, minor = oldest.removeprefix(">=").split(".")
    assert built == f"{oldest},<{major}.{int(minor) + 1}"


def test_a_build_of_the_engine_is_used_where_there_is_one() -> None:
    """Otherwise the tests of the engine, which skip without it, would say nothing."""
    builds = list((ROOT / "flax_shufflenet" / "ops").glob("_engine_*.so"))
    assert ops.info().engine == bool(builds), ops.info().why
