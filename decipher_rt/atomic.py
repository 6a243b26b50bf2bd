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
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
        staging = Path(beside) / "new"
        staging.mkdir()
        yield staging
        if target.exists():
            target.replace(Path(beside) / "old")
        staging.replace(target)


def write_text(target: Path, text: str) -> None:
    """Write a file beside its place, then rename: it is whole or not there. A file already there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
        staging = Path(beside) / target.name
        staging.write_text(text, encoding="utf-8")
        staging.replace(target)
