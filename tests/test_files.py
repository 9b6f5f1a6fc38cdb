"""Files that are written whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from flax_shufflenet.system.files import open_whole, why_no_room, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, file_size_limit):
    path = tmp_path / "net"
    path.write_bytes(b"before")
    with file_size_limit(100), pytest.raises(OSError, match="net") as raised:
        write_whole(path, bytes(101))
    assert why_no_room(raised.value) == "File too large"

    def interrupted():
        with open_whole(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_a_missing_folder_and_a_folder_in_the_way_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "nowhere" / "net", b"")
    assert raised.value.filename == str(tmp_path / "nowhere" / "net")
    (tmp_path / "net").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "net", b"")
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("n" * 255)
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_holds_also_for_files_that_other_threads_make_meanwhile(tmp_path, umask):
    modes, done = set(), threading.Event()

    def make_files():
        while not done.is_set():
            path = tmp_path / "other"
            path.touch()
            modes.add(path.stat().st_mode & 0o777)
            path.unlink()

    before = os.umask(umask)
    thread = threading.Thread(target=make_files)
    thread.start()
    try:
        for number in range(50):
            write_whole(Path(tmp_path, str(number)), b"")
            modes.add(Path(tmp_path, str(number)).stat().st_mode & 0o777)
    finally:
        done.set()
        thread.join()
        os.umask(before)
    assert modes == {0o666 & ~umask}
