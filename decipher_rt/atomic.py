"""Folders and files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# How often a folder is moved aside for another: one more for each process that puts one there at the same moment.
MOVES: Final = 20
NAME_MAX: Final = 255  # bytes of a file's name, on all file systems of Linux that matter


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place when the block ends without an error.

    A folder already at ``target`` is moved aside first and removed last, so that at every moment one of the two is
    whole on the disk. Whether it may be replaced is for the caller to check. After an error nothing is left behind.
    """
    with _beside(target) as beside:
        staging = beside / "new"
        staging.mkdir()
        yield staging
        _take_place(staging, target, beside)


def write_text(target: Path, text: str) -> None:
    """Write a text file as UTF-8; otherwise as ``write_bytes``."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file that is whole or not there. A file already there is replaced."""
    with whole_file(target, writer=f"{os.getpid()}.") as staging:
        staging.write_bytes(content)


@contextmanager
def whole_file(target: Path, *, writer: str = "") -> Iterator[Path]:
    """Yield a path beside ``target`` that takes its place when the block ends without an error; else it is removed.

    What a killed process left under that path the next one writes over. Where several may write the same file at once,
    ``writer`` tells them apart.
    """
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.{writer}part")
        try:
            yield staging
            staging.replace(target)
        finally:
            staging.unlink(missing_ok=True)


def require_place(file: Path) -> None:
    """Raise now the OSError that writing a file would end in after long work; folders on its way need not exist yet."""
    if len(os.fsencode(f".{file.name}.{os.getpid()}.part")) > NAME_MAX:  # the name that it is written under
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(file))
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    folder = next(parent for parent in file.parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _take_place(staging: Path, target: Path, beside: Path) -> None:
    """Rename a folder to ``target``; what lies there, or another process puts there meanwhile, is moved aside."""
    for attempt in range(MOVES):
        aside = beside / f"old{attempt}"
        try:
            with suppress(FileNotFoundError):
                target.replace(aside)
            staging.replace(target)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and attempt + 1 < MOVES:
                continue
            if aside.exists() and not target.exists():
                aside.replace(target)
            raise
        return


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same file system. What of it cannot be removed is left: the work is done."""
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        name = f".{target.name}-"
        with tempfile.TemporaryDirectory(prefix=name, dir=target.parent, ignore_cleanup_errors=True) as beside:
            yield Path(beside)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let an error that names no file, as of a full disk, or one of those beside it, name ``target``."""
    try:
        yield
    except OSError as error:
        beside = str(target.parent / f".{target.name}")
        if error.filename is None or str(error.filename).startswith(beside):
            error.filename = str(target)
        raise
