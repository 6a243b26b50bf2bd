"""Tensors of many series in shards, safetensors files that are each written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from decipher_rt.errors import DecipherError

from ..checkpoint import write_tensors
from ..shards import one_maker, rows_of, shard_file


class ShardError(DecipherError):
    """A shard that cannot be read. The message names the file and what to do."""


def fill(
    folder: Path,
    count: int,
    counted: str,
    make: Callable[[range], Mapping[str, Tensor]],
    progress: Callable[[int], Any],
) -> None:
    """Make the shards of ``count`` series that are not there; whatever kills it, those that are there are whole.

    Parameters
    ----------
    folder : Path
    count : int
    counted : str
        A tensor whose first axis is the series of a shard: the last shard grows with the split.
    make : callable
        Given the numbers of a shard's series, returns its tensors.
    progress : callable
        Told how many series are there.
    """
    with one_maker(folder):
        for number, rows in enumerate(rows_of(count)):
            if not _complete(shard_file(folder, number), counted, len(rows)):
                write_tensors(shard_file(folder, number), dict(make(rows)), {}, writer=f"{os.getpid()}.")
            progress(rows.stop)


def read_shard(path: Path, names: tuple[str, ...]) -> list[Tensor]:
    """Read tensors of a shard.

    Raises
    ------
    ShardError
        If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name) for name in names]
    except (SafetensorError, OSError, ValueError) as error:
        raise ShardError(f"{path}: not a shard of the cache ({str(error)[:80]}); remove it") from None


def _complete(path: Path, counted: str, rows: int) -> bool:
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return len(file.get_slice(counted)[:]) >= rows
    except (SafetensorError, OSError):
        return False
