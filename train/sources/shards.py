"""Examples on disk: safetensors shards, written beside and renamed, so that a killed run leaves whole ones only.

A shard holds ``volume`` (N, D, H, W) float16, ``affine_lps_mm`` (N, 4, 4) float64, ``tissue``
(T, D, H, W) uint8 of those that have one, and everything else as JSON in the file's metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..checkpoint import CheckpointError, write_safetensors
from ..shards import one_maker, place_of, rows_of, shard_file
from ..workers import run_jobs
from .example import Box, Example, Facts
from .rows import SourceError, by_place, one_error


class MakeExample(Protocol):
    """Makes examples by number, in any process: it can be pickled, and the same number gives the same example."""

    def __call__(self, index: int, /) -> Example:
        """Make one."""
        ...


@dataclass(frozen=True)
class ShardedExamples:
    """The first ``count`` examples of a folder of shards.

    Each shard is opened once, and nothing of it is copied: the arrays of an example are views of the file, read from
    disk where they are looked at, and cannot be written to.
    """

    folder: Path
    count: int

    @property
    def name(self) -> str:
        """Return what says which series these are: the folder is named after everything that decides the content."""
        return self.folder.name

    def __len__(self) -> int:
        """Return how many there are."""
        return self.count

    def __getitem__(self, index: int, /) -> Example:
        """Read one."""
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        number, row = place_of(index)
        return read_example(shard_file(self.folder, number), row)

    def facts(self, index: int) -> Facts:
        """Return what is known of one; the voxels are not read."""
        if not 0 <= index < self.count:
            raise IndexError(f"example {index} of {self.count}")
        shard, row = place_of(index)
        return _shard(shard_file(self.folder, shard)).facts[row]


def make_shards(
    make: MakeExample, count: int, folder: Path, workers: int, advance_to: Callable[[int], Any]
) -> ShardedExamples:
    """Make whatever of the first ``count`` examples is not on disk yet.

    Parameters
    ----------
    make : MakeExample
    folder : Path
        Named by its caller after everything that decides the content.
    workers : int
        Processes.
    advance_to : callable
        Told how many examples are there.

    Raises
    ------
    SourceError
        As `write_missing`.
    """
    with one_maker(folder):
        shards = [(make, rows, shard_file(folder, shard)) for shard, rows in enumerate(rows_of(count))]
        write_missing(shards, workers, advance_to)
    return ShardedExamples(folder, count)


def write_missing(
    shards: Sequence[tuple[MakeExample, range, Path]], workers: int, advance_to: Callable[[int], Any]
) -> None:
    """Make and write the files that are not there with all their examples: for each its maker, their numbers, its path.

    Raises
    ------
    SourceError
        For all examples that cannot be made; files without such a one are there.
    """
    missing = [(make, rows, path) for make, rows, path in shards if not _whole(path, rows)]
    done = sum(len(rows) for _, rows, _ in shards) - sum(len(rows) for _, rows, _ in missing)
    advance_to(done)

    def made(job: int) -> None:
        nonlocal done
        done += len(missing[job][1])
        advance_to(done)

    found = run_jobs(write_shard, missing, workers, made)
    if errors := [error for of_shard in found for error in of_shard]:
        raise one_error(sorted(errors, key=by_place), "series that cannot be read")


def write_shard(make: MakeExample, indices: range, path: Path) -> list[str]:
    """Make the examples of one shard and write them; where some cannot be made, return why, and write nothing."""
    examples, errors = [], []
    for index in indices:
        try:
            examples.append(make(index))
        except SourceError as error:
            errors.append(str(error))
    if errors:
        return errors
    with_tissue = [row for row, example in enumerate(examples) if example.tissue is not None]
    arrays: dict[str, NDArray[Any]] = {
        "volume": np.stack([example.volume for example in examples]),
        "affine_lps_mm": np.stack([np.asarray(example.affine_lps_mm, np.float64) for example in examples]),
    }
    if with_tissue:
        arrays["tissue"] = np.stack([t for example in examples if (t := example.tissue) is not None])
    documents = [_document(example) for example in examples]
    about = {"facts": json.dumps(documents), "with_tissue": json.dumps(with_tissue)}
    write_safetensors(path, lambda staging: save_file(arrays, staging, about), writer=f"{os.getpid()}.")
    return []


def read_example(path: Path, row: int) -> Example:
    """Read one example of a file; its arrays are views."""
    shard = _shard(path)
    return Example(
        **vars(shard.facts[row]),
        volume=shard.volume[row],
        affine_lps_mm=shard.affine_lps_mm[row],
        tissue=shard.tissue[shard.with_tissue.index(row)] if row in shard.with_tissue else None,
    )


def _whole(path: Path, rows: range) -> bool:
    """Whether a shard is there with all its rows: the last one grows when more examples are asked for."""
    return path.exists() and len(_shard(path).facts) >= len(rows)


@dataclass(frozen=True)
class _Shard:
    """A shard's arrays as its file has them, and what is known of each row."""

    volume: NDArray[np.float16]
    affine_lps_mm: NDArray[np.float64]
    tissue: NDArray[np.uint8]
    with_tissue: tuple[int, ...]
    facts: tuple[Facts, ...]


def _shard(path: Path) -> _Shard:
    try:
        return _opened(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: was removed while it was in use; run the command again") from None


@lru_cache(maxsize=1024)
def _opened(path: Path, mtime_ns: int) -> _Shard:
    del mtime_ns  # only tells a shard from what replaced it
    try:
        with safe_open(path, framework="pt") as file:  # its tensors are views of the file, those of NumPy are copies
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 - no mapping
        for array in arrays.values():
            array.flags.writeable = False  # all that read this shard share it
        return _Shard(
            arrays["volume"],
            arrays["affine_lps_mm"],
            arrays.get("tissue", np.zeros((0, 0, 0, 0), np.uint8)),
            tuple(json.loads(metadata["with_tissue"])),
            tuple(_facts(d) for d in json.loads(metadata["facts"])),
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: a damaged shard ({str(error)[:80]}); remove it and run again") from None


def _document(example: Example) -> dict[str, Any]:
    boxes = example.boxes
    return {
        "labels": dict(example.labels),
        "report": list(example.report),
        "boxes": None if boxes is None else [[b.center_lps_mm, b.size_mm, b.label] for b in boxes],
        "region": example.region,
        "patient": example.patient,
        "kind": example.kind,
    }


def _facts(document: dict[str, Any]) -> Facts:
    boxes = document["boxes"]
    return Facts(
        labels=document["labels"],
        report=tuple(document["report"]),
        boxes=None if boxes is None else tuple(Box(tuple(c), tuple(s), label) for c, s, label in boxes),
        region=document["region"],
        patient=document["patient"],
        kind=document["kind"],
    )
