"""Where bytes come from: files of a folder and members of a zip archive, within limits for hostile input."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from decipher_rt.errors import SeriesError

# A scan of one patient has some ten thousand files; more under one path is a mistake (the root folder, say).
MAX_FILES = 200_000
# An archive is read in memory. Its declared sizes are checked first; zipfile never yields more than was declared.
MAX_ARCHIVE_BYTES = 4 << 30
# MR images deflate about 1:2, images of mere air 1:100; deflate itself ends at 1:1032. Small archives may be anything.
MAX_ARCHIVE_RATIO = 200
SMALL_ARCHIVE_BYTES = 256 << 20
COMPARED_TOGETHER = 1 << 20  # bytes of two files that are compared at once


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes with a name: a file on disk, or (``data``) a member of an archive that was read into memory.

    ``name`` is how messages call it; it is never used as a path. ``size`` is in bytes.
    """

    name: str
    path: Path
    size: int
    data: bytes | None = None

    def head(self, count: int) -> bytes:
        """Return the first ``count`` bytes, fewer where there are fewer."""
        return self.read(0, count)

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset``, fewer where the source ends."""
        if self.data is not None:
            return self.data[offset : offset + count]
        file = os.open(self.path, os.O_RDONLY)
        try:
            left, pieces = min(count, max(self.size - offset, 0)), []
            while left > 0 and (piece := os.pread(file, left, offset)):  # Linux gives no more than 2 GiB at a time
                pieces.append(piece)
                left, offset = left - len(piece), offset + len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(file)

    def same_bytes(self, other: Source) -> bool:
        """Whether another source holds the same bytes."""
        return self.size == other.size and all(
            self.read(start, COMPARED_TOGETHER) == other.read(start, COMPARED_TOGETHER)
            for start in range(0, self.size, COMPARED_TOGETHER)
        )

    def read_into(self, target: memoryview, offset: int) -> int:
        """Fill ``target`` (contiguous bytes) from ``offset`` and return how many bytes there were."""
        if self.data is not None:
            part = self.data[offset : offset + len(target)]
            target[: len(part)] = part
            return len(part)
        file = os.open(self.path, os.O_RDONLY)
        try:
            done = 0
            while done < len(target):
                count = os.preadv(file, [target[done:]], offset + done)
                if count == 0:
                    break
                done += count
            return done
        finally:
            os.close(file)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that the operating system would not give, with its reason."""

    name: str
    reason: str


def sources(path: Path) -> Iterator[Source | Unreadable]:
    """List what lies under a path: one file, the members of a ``.zip``, or a folder with all its folders, by name.

    Links are followed, to each folder once: they may form a loop. A link to nothing is not passed over: it may be a
    slice.

    Raises
    ------
    SeriesError
        Where the path does not exist, or holds more than is safe to read.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SeriesError(f"{path}: {_reason(error)}; give a DICOM folder, a .zip of one, or a NIfTI file") from None
    except (OSError, ValueError) as error:
        raise SeriesError(f"{path}: {_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        yield from _folder(path)
    elif not stat.S_ISREG(status.st_mode):
        raise SeriesError(f"{path}: neither a file nor a folder")
    elif path.suffix.lower() == ".zip":
        yield from _archive(path)
    else:
        yield Source(path.name, path, status.st_size)


def _folder(root: Path) -> Iterator[Source | Unreadable]:
    prefix = len(os.fspath(root)) + (not os.fspath(root).endswith(os.sep))
    waiting = [os.fspath(root)]
    files, visited = 0, set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        try:
            status = Path(folder).stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield Unreadable(folder[prefix:] or folder, _reason(error))
            continue
        folders = []
        for entry in entries:
            try:
                if entry.is_dir():
                    folders.append(entry.path)
                elif entry.is_file():
                    files += 1
                    if files > MAX_FILES:
                        raise SeriesError(f"{root}: more than {MAX_FILES} files; give the folders in it ({root}/*)")
                    yield Source(entry.path[prefix:], Path(entry.path), entry.stat().st_size)
                elif entry.is_symlink() and not entry.name.startswith("."):  # an editor's lock is no slice
                    yield Unreadable(entry.path[prefix:], "a link to what is not there")
            except OSError as error:
                yield Unreadable(entry.path[prefix:], _reason(error))
        waiting.extend(reversed(folders))


def _archive(path: Path) -> Iterator[Source | Unreadable]:
    import zipfile
    import zlib

    bad: tuple[type[Exception], ...] = (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        zlib.error,
    )
    with suppress(ImportError):  # a Python that was built without it reads the other archives
        from lzma import LZMAError

        bad += (LZMAError,)
    try:
        archive = zipfile.ZipFile(path)
    except bad as error:
        raise SeriesError(f"{path}: not a readable zip archive ({_reason(error)})") from None
    with archive:
        members = sorted((m for m in archive.infolist() if not m.is_dir()), key=lambda m: m.filename)
        total = sum(member.file_size for member in members)
        packed = max(path.stat().st_size, 1)
        if len(members) > MAX_FILES or total > MAX_ARCHIVE_BYTES:
            raise SeriesError(
                f"{path}: unpacks to {len(members)} files and {total >> 20} MiB, more than {MAX_FILES} files or "
                f"{MAX_ARCHIVE_BYTES >> 20} MiB; unpack it and give the folder of one study"
            )
        if total > SMALL_ARCHIVE_BYTES and total / packed > MAX_ARCHIVE_RATIO:
            raise SeriesError(
                f"{path}: unpacks to {total // packed} times its size, more than {MAX_ARCHIVE_RATIO}; no MR series does"
            )
        for member in members:
            name = f"{path.name}/{member.filename}"
            if member.flag_bits & 1:
                raise SeriesError(f"{name}: is encrypted; unpack the archive first")
            try:
                data = archive.read(member)
            except bad as error:
                yield Unreadable(name, _reason(error))
            else:
                yield Source(name, path, len(data), data)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return text.splitlines()[0]
