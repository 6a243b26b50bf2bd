"""Series on disk in shards, files of ``SHARD`` series: which lies where, and one process at a time that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .lock import one_at_a_time

SHARD = 32


def rows_of(count: int) -> list[range]:
    """Return the numbers of each shard's series; the last shard grows with the split."""
    return [range(first, min(count, first + SHARD)) for first in range(0, count, SHARD)]


def place_of(index: int) -> tuple[int, int]:
    """Return the shard that holds a series, and which row of it."""
    return divmod(index, SHARD)


def shard_file(folder: Path, shard: int) -> Path:
    """Return where a shard lies."""
    return folder / f"{shard:05d}.safetensors"


@contextmanager
def one_maker(folder: Path) -> Iterator[None]:
    """Make a folder of shards, and let one process at a time fill it: those of a run start together."""
    with one_at_a_time(folder / ".lock"):
        yield
