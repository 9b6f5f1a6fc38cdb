"""What is found in folders of images, with links as people make them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from flax_shufflenet.images import reading
from tests.folder_tools import too_deep


@pytest.fixture
def folder(tmp_path) -> Path:
    """``a.png``, ``sub/b.JPG`` and what is no image."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    Image.new("RGB", (4, 4)).save(folder / "sub" / "b.JPG")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden").mkdir()
    Image.new("RGB", (4, 4)).save(folder / ".hidden" / "c.png")
    Image.new("RGB", (4, 4)).save(folder / ".d.png")
    return folder


def names(folder: Path) -> list[str]:
    found = reading.find(folder)
    assert found.unreadable == []
    assert found.real_paths == [os.path.realpath(path) for path in found.paths]
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_images_are_sorted_and_what_is_hidden_is_passed_over(folder):
    assert names(folder) == ["a.png", "sub/b.JPG"]


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_links_that_run_in_a_circle_are_walked_once(folder, target):
    (folder / "sub" / "loop").symlink_to(folder / "sub" / target, target_is_directory=True)
    (folder / "a_loop").symlink_to(".", target_is_directory=True)
    (folder / "itself").symlink_to("itself")
    for here, there in (("left", "right"), ("right", "left")):
        (folder / here).mkdir()
        (folder / here / "across").symlink_to(f"../{there}", target_is_directory=True)
    assert names(folder) == ["a.png", "sub/b.JPG"]


def test_a_file_with_several_names_counts_once_by_that_with_the_fewest_links(folder, tmp_path):
    (folder / "0.png").symlink_to("a.png")
    (folder / "1").symlink_to("sub", target_is_directory=True)
    (folder / "sub" / "2.png").symlink_to("../0.png")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "other" / "deep" / "e.png")
    (folder / "b").symlink_to("../other/deep", target_is_directory=True)
    (folder / "a").symlink_to("../other", target_is_directory=True)
    (folder / "f.png").symlink_to("../other/deep/e.png")
    assert names(folder) == ["a/deep/e.png", "a.png", "sub/b.JPG"]


def test_equal_images_that_are_no_links_all_count(folder):
    os.link(folder / "a.png", folder / "hard.png")
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    assert names(folder) == ["a.png", "copy.png", "hard.png", "sub/b.JPG"]


def test_a_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to("images", target_is_directory=True)
    assert names(tmp_path / "link") == ["a.png", "sub/b.JPG"]


def test_a_link_to_nothing_is_left_for_the_reader_to_name(folder):
    (folder / "gone.png").symlink_to("nowhere.png")
    assert names(folder) == ["a.png", "gone.png", "sub/b.JPG"]
    with pytest.raises(reading.ImageError, match=r"gone\.png: no such file"):
        reading.read(folder / "gone.png")


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_read(folder):
    path = too_deep(folder)
    found = reading.find(folder)
    assert [path.name for path in found.paths] == ["a.png", "b.JPG"]
    assert [str(error) for error in found.unreadable] == [f"{path}: this folder cannot be read (File name too long)"]


@pytest.fixture
def without_root() -> Iterator[Path]:
    """A folder of a user who is not root: permissions count, even where root runs the tests."""
    folder, is_root = Path(tempfile.mkdtemp()), os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    yield folder
    if is_root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_an_image_without_permission_is_named(without_root):
    path = without_root / "a.png"
    path.touch(0)
    with pytest.raises(reading.ImageError) as raised:
        reading.read(path)
    assert str(raised.value) == f"{path}: cannot be read as an image (Permission denied)"


def test_a_folder_without_permission_and_a_link_into_it_are_named(without_root):
    folder = without_root
    (folder / "private" / "inner").mkdir(parents=True)
    (folder / "link").symlink_to("private/inner", target_is_directory=True)
    (folder / "a.png").touch()
    (folder / "private").chmod(0)
    found = reading.find(folder)
    (folder / "private").chmod(0o700)
    assert found.paths == [folder / "a.png"]
    assert sorted(str(error) for error in found.unreadable) == [
        f"{folder / name}: this folder cannot be read (Permission denied)" for name in ("link", "private")
    ]
