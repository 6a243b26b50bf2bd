"""Folders, links and archives, and their limits."""

import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from decipher_rt.dicom import source as module
from decipher_rt.dicom.source import Source, Unreadable, sources
from decipher_rt.errors import SeriesError
from decipher_rt.series import find_only_series, find_series, read_series


def names(path):
    return [found.name for found in sources(path)]


def test_a_folder_is_listed_with_all_its_folders(tmp_path):
    for name in ("b/2", "b/1", "a", "c/d/e/3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    assert names(tmp_path) == ["a", "b/1", "b/2", "c/d/e/3"]
    assert [found.size for found in sources(tmp_path)] == [1, 3, 3, 7]


def test_links_are_followed_to_each_folder_once(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    (data / "a").write_bytes(b"a")
    (data / "loop").symlink_to(data)
    (data / "link").symlink_to(data / "a")
    (other / "b").write_bytes(b"b")
    (other / "back").symlink_to(data)
    (data / "linked").symlink_to(other)
    (data / "linked again").symlink_to(other)
    assert names(data) == ["a", "link", "linked/b"]
    (tmp_path / "entry").symlink_to(data)
    assert names(tmp_path / "entry") == ["a", "link", "linked/b"]


@pytest.mark.parametrize("number", [0, 3])
def test_a_link_to_nothing_may_be_a_slice(tmp_path, write_series, number):
    folder = write_series(tmp_path / "s")
    slice_ = folder / f"{number:04d}.dcm"
    slice_.unlink()
    slice_.symlink_to(tmp_path / "annexed")
    _, unreadable = find_series(folder)
    with pytest.raises(SeriesError, match=rf"{slice_.name}: cannot be read \(a link to what is not there\)"):
        read_series(unreadable)


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_empty_file_may_be_a_slice(tmp_path, write_series, number, zipped):
    folder = write_series(tmp_path / "s")
    name = f"{number:04d}.dcm"
    (folder / name).write_bytes(b"")
    where = Path(shutil.make_archive(str(tmp_path / "s"), "zip", folder)) if zipped else folder
    _, damaged = find_series(where)
    with pytest.raises(SeriesError, match=rf"{name}: empty, its copy was cut off"):
        read_series(damaged)


@pytest.mark.parametrize(("ending", "slices"), [("", True), (".IMA", True), ("", False)])
def test_an_empty_file_named_as_the_slices_may_be_one(tmp_path, write_series, ending, slices):
    folder = write_series(tmp_path / "s")
    for path in sorted(folder.iterdir()):
        path.rename(path.with_suffix(ending if slices else ".dcm"))
    for name in (".keep", ".#lock", "notes.txt", f"IM9{ending}"):
        (folder / name).write_bytes(b"")
    (folder / ".#dangling").symlink_to("nowhere")
    series, *damaged = find_series(folder)
    assert [one.content for one in damaged] == [f"IM9{ending}: empty, its copy was cut off"] * slices
    assert read_series(series).voxels.size


def test_one_series_is_not_called_two_for_what_lies_beside_it(tmp_path, write_series):
    folder = write_series(tmp_path / "s")
    find_only_series(folder, "name one")
    (folder / "9999.dcm").write_bytes(b"")
    with pytest.raises(SeriesError, match=r"s: 9999\.dcm: empty, its copy was cut off"):
        find_only_series(folder, "name one")
    write_series(tmp_path / "s" / "other", series_uid="1.2.3.4")
    with pytest.raises(SeriesError, match=r"s: holds 3 series; name one"):
        find_only_series(folder, "name one")


def test_devices_and_pipes_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"a")
    assert names(tmp_path) == ["a"]
    with pytest.raises(SeriesError, match="neither a file nor a folder"):
        names(tmp_path / "pipe")


def test_what_is_not_there(tmp_path):
    with pytest.raises(SeriesError, match=r"nowhere: No such file"):
        names(tmp_path / "nowhere")


def test_what_may_not_be_read(tmp_path, write_series, monkeypatch):
    """As root reads everything, the system's refusal is played."""
    folder, opened = write_series(tmp_path / "s"), os.open

    def refused(path, *arguments, **named):
        if Path(path).name == "0002.dcm":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(module.os, "open", refused)
    whole, unreadable = find_series(folder)
    with pytest.raises(SeriesError, match="1 slice is missing"):
        read_series(whole)
    with pytest.raises(SeriesError, match=r"0002\.dcm: .*Permission denied"):
        read_series(unreadable)


def test_more_files_than_a_study_has(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).write_bytes(b"")
    with pytest.raises(SeriesError, match="more than 3 files"):
        names(tmp_path)


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_members_are_read_in_memory_and_never_leave_it(tmp_path, write_series):
    folder = write_series(tmp_path / "s")
    hostile = [
        "../../outside.dcm",
        "/absolute.dcm",
        "..\\windows.dcm",
        "C:/drive.dcm",
        "a/./b/../../../c.dcm",
        "nul\0.dcm",
    ]
    files = sorted(folder.iterdir())
    (tmp_path / "in").mkdir()
    archive = zipped(
        tmp_path / "in" / "x.zip", {name: path.read_bytes() for name, path in zip(hostile, files, strict=True)}
    )
    before = sorted(tmp_path.rglob("*"))
    (series,) = find_series(archive)
    np.testing.assert_array_equal(read_series(series).voxels, read_series(find_series(folder)[0]).voxels)
    assert sorted(tmp_path.rglob("*")) == before
    assert series.files == 6


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "bomb.zip", {"a.dcm": bytes(20 << 20)})
    monkeypatch.setattr(module, "SMALL_ARCHIVE_BYTES", 1 << 20)
    with pytest.raises(SeriesError, match=r"bomb\.zip: unpacks to \d+ times its size"):
        names(archive)
    monkeypatch.setattr(module, "MAX_ARCHIVE_BYTES", 1 << 20)
    with pytest.raises(SeriesError, match=r"unpacks to 1 files and 20 MiB"):
        names(archive)
    monkeypatch.setattr(module, "MAX_FILES", 0)
    with pytest.raises(SeriesError, match=r"unpacks to 1 files"):
        names(archive)


def test_an_archive_that_lies_about_its_sizes(tmp_path):
    """The declared size is what the limits look at: a member never yields more than that."""
    archive = zipped(tmp_path / "x.zip", {"a.dcm": bytes(5 << 20)})
    data = archive.read_bytes()
    size = (5 << 20).to_bytes(4, "little")
    assert data.count(size) == 2  # local and central header
    archive.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    (found,) = sources(archive)
    assert isinstance(found, Unreadable) or found.size <= 100


def test_damaged_archives(tmp_path, write_series):
    files = {path.name: path.read_bytes() for path in sorted(write_series(tmp_path / "s").iterdir())}
    good = zipped(tmp_path / "good.zip", files).read_bytes()
    (tmp_path / "not.zip").write_bytes(b"PK nothing")
    (tmp_path / "empty.zip").write_bytes(b"")
    (tmp_path / "cut.zip").write_bytes(good[: len(good) // 2])
    for name in ("not", "empty", "cut"):
        with pytest.raises(SeriesError, match=rf"{name}\.zip: not a readable zip archive"):
            find_series(tmp_path / f"{name}.zip")
    spoilt = bytearray(good)
    start = 30 + len(min(files)) + 60  # local header, name, then deflated data
    spoilt[start : start + 40] = bytes(40)
    (tmp_path / "spoilt.zip").write_bytes(spoilt)
    found = [find for find in sources(tmp_path / "spoilt.zip") if isinstance(find, Unreadable)]
    assert [find.name for find in found] == ["spoilt.zip/" + min(files)]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_fuzzed_archives(tmp_path, write_series, compression):
    files = {path.name: path.read_bytes() for path in write_series(tmp_path / "s", (2, 4, 4)).iterdir()}
    good = zipped(tmp_path / "x.zip", files, compression).read_bytes()
    generator = np.random.default_rng(5)
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(0, len(data), size=4):
            data[place] = generator.integers(256)
        (tmp_path / "x.zip").write_bytes(data)
        try:
            for series in find_series(tmp_path / "x.zip"):
                read_series(series)
        except SeriesError as error:
            message = str(error)  # noqa: F841 (any is fine, as long as it is a SeriesError)


def test_a_python_without_lzma_reads_other_archives(tmp_path, write_series, monkeypatch):
    files = {path.name: path.read_bytes() for path in write_series(tmp_path / "s", (2, 4, 4)).iterdir()}
    zipped(tmp_path / "x.zip", files)
    monkeypatch.setitem(sys.modules, "lzma", None)
    assert len(find_series(tmp_path / "x.zip")) == 1


def test_an_encrypted_member_is_named(tmp_path):
    archive = zipped(tmp_path / "x.zip", {"a.dcm": b"data"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(SeriesError, match=r"x\.zip/a\.dcm: is encrypted"):
        find_series(archive)


def test_reading_parts_of_a_source(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(10)))
    for source in (Source("a", tmp_path / "a", 10), Source("a", tmp_path, 10, bytes(range(10)))):
        assert source.head(3) == b"\0\1\2"
        assert source.read(8, 5) == b"\x08\x09"
        assert source.read(20, 5) == b""
        target = bytearray(4)
        assert source.read_into(memoryview(target), 7) == 3
        assert target == b"\7\x08\x09\0"


def test_what_the_system_gives_in_pieces_is_read_whole(tmp_path, monkeypatch):
    """Linux gives no more than 2 GiB for one call."""
    content = bytes(range(200))
    (tmp_path / "a").write_bytes(content)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, offset: pread(file, min(count, 64), offset))
    source = Source("a", tmp_path / "a", 200)
    assert source.read(10, 150) == content[10:160]
    assert source.read(150, 100) == content[150:]
    assert source.read(300, 10) == b""
