"""Files and folders that are whole or not there."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from decipher_rt.atomic import require_place, whole_file, whole_folder, write_bytes


def fill_the_disk(whole, target):
    with whole(target) as staging:
        (staging / "part" if staging.is_dir() else staging).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_full_disk_names_the_place_and_leaves_nothing(tmp_path, whole):
    with pytest.raises(OSError, match="No space left") as caught:
        fill_the_disk(whole, tmp_path / "target")
    assert caught.value.filename == str(tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_place_that_takes_nothing_is_named_as_it_was_given(whole):
    with pytest.raises(OSError, match="No such file") as caught, whole(Path("/proc/target")) as staging:
        staging.write_bytes(b"never")
    assert caught.value.filename == "/proc/target"


def test_this_folder_cannot_be_replaced_and_is_named():
    with pytest.raises(OSError, match="busy") as caught, whole_folder(Path()):
        pass
    assert caught.value.filename == "."


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "file"
    write_bytes(target, b"old")
    with pytest.raises(OSError, match="No space left"):
        fill_the_disk(whole_file, target)
    assert target.read_bytes() == b"old"
    with whole_file(target) as staging:
        staging.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    target = tmp_path / "file"
    with whole_file(target) as staging:
        left = staging
        staging.write_bytes(b"first")
    left.write_bytes(b"half of something longer, left by a killed process")
    with whole_file(target) as staging:
        assert staging == left
        staging.write_bytes(b"second")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"second"]


def test_folders_that_take_each_others_place_are_whole_at_every_moment(tmp_path):
    """As processes do that answer for the same series at the same time."""

    def write(content):
        for _ in range(50):
            with whole_folder(tmp_path / "target") as staging:
                for name in "ab":
                    (staging / name).write_text(content)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "0123"))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert len({(tmp_path / "target" / name).read_text() for name in "ab"}) == 1


def test_what_was_moved_aside_comes_back_where_nothing_takes_its_place(tmp_path, monkeypatch):
    target, replace = tmp_path / "target", Path.replace
    with whole_folder(target) as staging:
        (staging / "a").write_text("old")

    def interrupted(path, to):
        if path.name == "new":
            raise KeyboardInterrupt
        return replace(path, to)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "a").read_text() == "old"


def test_an_old_folder_that_cannot_be_removed_is_no_failure_of_the_new_one(tmp_path, monkeypatch):
    """As on NFS, which keeps the files that somebody still reads."""
    target = tmp_path / "target"
    target.mkdir()

    def kept(path, **_):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    monkeypatch.setattr(os, "rmdir", kept)
    with whole_folder(target) as staging:
        (staging / "a").write_text("new")
    assert (target / "a").read_text() == "new"


def test_a_name_too_long_to_be_written_beside_is_refused_before_the_work(tmp_path):
    require_place(tmp_path / ("a" * 200))
    with pytest.raises(OSError, match="name too long"):
        require_place(tmp_path / ("a" * 250))
