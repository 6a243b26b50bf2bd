"""Folders and files that are whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        if target.exists():
            target.replace(beside / "old")
        staging.replace(target)


def write_text(target: Path, text: str) -> None:
    """Write a text file as UTF-8; otherwise as ``write_bytes``."""
    write_bytes(target, text.encode())


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file beside its place, then rename: it is whole or not there. A file already there is replaced."""
    with _beside(target) as beside:
        staging = beside / target.name
        staging.write_bytes(content)
        staging.replace(target)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same file system. An error that names no file (disk full) names ``target``."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
            yield Path(beside)
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise
