"""The documents: links and anchors lead somewhere, tables are what was measured, commands that they name are there."""

import importlib
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.tables import __main__ as tables
from flax_shufflenet.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")] + PAGES


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    """Without code blocks, whose lines are no headings and no links."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Those of the headings, as GitHub and Python-Markdown make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-{sum(one.startswith(slug) for one in found)}")
    return found


def links(path: Path) -> list[str]:
    """Where the links and pictures lead, without web addresses."""
    text = re.sub(r"`[^`\n]*`", "", text_of(path))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:", target)]


def broken(path: Path) -> list[str]:
    """Links that lead nowhere."""
    found = []
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_and_anchor_leads_somewhere(path: Path) -> None:
    assert broken(path) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One\n\n## What it's worth\n\n## One\n\n```\n# no heading\n[code](gone.md)\n```\n"
    )
    page = tmp_path / "page.md"
    right = (
        "[a](other.md) [b](other.md#what-its-worth) [c](other.md#one-1) [d](#here) `[e](gone.md)` [f](https://g.h/i)"
    )
    page.write_text(f"# Here\n\n{right}\n\n![g](gone.png) [h](other.md#no-heading) [i](#there)\n")
    assert broken(page) == ["gone.png", "other.md#no-heading", "#there"]


def test_the_site_has_every_page_and_no_link_leaves_it() -> None:
    """What ``mkdocs build --strict`` holds too, where it is installed."""
    shown = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(shown) == [page.name for page in PAGES]
    assert [(page.name, link) for page in PAGES for link in links(page) if "/" in link] == []


def test_everything_in_the_api_reference_is_there() -> None:
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


# The changes name commands that are gone.
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=name_of)
def test_every_command_that_a_document_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ([a-z_][\w.]*\w)", text)) - {"venv"}
    assert [module for module in sorted(modules) if find_spec(module) is None] == []
    commands = set(re.findall(r"(?:^|`|\$ )flax-shufflenet ([a-z]+)", text, re.MULTILINE))
    assert commands <= set(COMMANDS)
    scripts = set(re.findall(r"python ([\w/]+\.py)", text))
    assert [script for script in sorted(scripts) if not (ROOT / script).exists()] == []


def test_the_readme_is_a_front_door() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("path", tables.documents(), ids=name_of)
def test_every_table_is_what_was_measured(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.rewritten(text) == text, "python -m benchmarks.tables writes it anew"


def test_no_recorded_measurement_names_a_path_of_the_machine() -> None:
    records = [path for folder in ("results", "benchmarks") for path in (ROOT / folder).rglob("*.json*")]
    assert [name_of(path) for path in records if re.search(r'"/(?!tmp/)\w', path.read_text())] == []


def test_a_table_that_disagrees_with_its_file_is_rewritten_and_named(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "train.json", tmp_path / "benchmarks")
    page = "Before.\n\n<!-- table: train benchmarks/train.json -->\nold\n<!-- end of table -->\n\nAfter.\n"
    (tmp_path / "README.md").write_text(page)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr("benchmarks.tables.markdown.ROOT", tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["tables", *arguments])
        return tables.main()

    assert run("--check") == 1
    assert (tmp_path / "README.md").read_text() == page
    assert run() == 0
    new = (tmp_path / "README.md").read_text()
    assert new.startswith("Before.\n\n<!-- table:")
    assert new.endswith("<!-- end of table -->\n\nAfter.\n")
    measured = json.loads((ROOT / "benchmarks" / "train.json").read_text())
    ours = next(row for row in measured["summary"] if row["contender"] == "flax-shufflenet")
    assert f"| **flax_shufflenet** | {1000 * ours['seconds']:.3g} |" in new
    assert f"2 cores, load at the start {measured['hardware']['load']:.1f}" in new
    assert run("--check") == 0

    file = tmp_path / "benchmarks" / "train.json"
    found = json.loads(file.read_text())
    next(row for row in found["summary"] if row["contender"] == "flax-shufflenet")["seconds"] = 0.2
    file.write_text(json.dumps(found | {"commit": "0123456789ab"}))
    assert run() == 0
    assert "| **flax_shufflenet** | 200 |" in (tmp_path / "README.md").read_text()
    assert "commit `0123456789ab`" in (tmp_path / "README.md").read_text()

    (tmp_path / "README.md").write_text(page.replace("table: train", "table: trian"))
    capsys.readouterr()
    assert run() == 1
    assert capsys.readouterr().err.startswith("tables: README.md: there is no table trian, only speed, train, infer")


def test_the_table_of_speeds_is_of_one_machine_and_one_commit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.tables.markdown.ROOT", tmp_path)
    for name in ("train.json", "infer.json"):
        found = json.loads((ROOT / "benchmarks" / name).read_text())
        (tmp_path / name).write_text(json.dumps(found | {"commit": name}))
    with pytest.raises(ValueError, match=r"train\.json and infer\.json are not of one machine and commit"):
        tables.TABLES["speed"](tmp_path / "train.json", tmp_path / "infer.json")
