"""Simulated series by index: the same number gives the same series, made once and kept on disk.

Simulating takes longer than a training step, so every series is simulated once, in worker processes, and each epoch
draws new views of it (``views.py``). A shard is a safetensors file of ``SHARD`` series, written beside and renamed:
whatever kills the run, the shards that are there are whole, and only missing ones are made again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from decipher_rt.manifest import Preprocessing

from . import data
from .checkpoint import write_safetensors
from .data import load_anatomy, simulate
from .data.sample import KINDS
from .model.heads import SEQUENCES
from .workers import run_jobs

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Shares among the series that are no heads: what is easy to mistake for a head comes more often.
NOT_HEADS = {"phantom": 0.4, "other_anatomy": 0.3, "scrambled": 0.2, "noise": 0.1}
SHARD = 32
STORED = (-0.5, 2.0)  # range kept on disk, in widths of the intensity window


@dataclass(frozen=True)
class Series:
    """One simulated series on the grid, as training sees it.

    Attributes
    ----------
    volume : ndarray, shape (D, H, W), float16
        0 and 1 are the ends of its intensity window.
    tissue : ndarray, shape (D, H, W), uint8
        Index in the simulator's ``LABELS``; 0 everywhere for what is no head.
    sequence : int
        Index in ``SEQUENCES``; -1 for what is no head.
    lesion : bool
    kind : int
        Index in ``KINDS``.
    """

    volume: NDArray[np.float16]
    tissue: NDArray[np.uint8]
    sequence: int
    lesion: bool
    kind: int

    @property
    def head(self) -> bool:
        """Whether it is a head."""
        return self.kind == 0


@dataclass(frozen=True)
class SampleSource:
    """Which series: everything that decides their content."""

    seed: int
    not_heads: float
    spec: Preprocessing

    def folder(self, cache_dir: Path, split: Split) -> Path:
        """Return where the shards of a split lie; another source, or another simulator, has another folder."""
        spec = self.spec
        decides = (self.seed, self.not_heads, spec.grid_shape, spec.spacing_mm, spec.window_percentiles)
        digest = hashlib.sha256(json.dumps(decides).encode())
        for source in sorted(Path(data.__file__).parent.glob("*.py")):
            digest.update(source.read_bytes())
        return cache_dir / f"{split}-{digest.hexdigest()[:12]}"


def sample_seed(seed: int, split: Split, index: int) -> int:
    """Return the simulator's seed of one series; splits never share one."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(1, np.uint64)[0] >> 1)


class SeriesStore(Protocol):
    """Series by number: on disk, or a list."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int, /) -> Series:
        """Return one series."""
        ...


class Samples:
    """The series of one split, on disk. ``samples[i]`` reads one."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self._count = folder, count

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count

    def __getitem__(self, index: int, /) -> Series:
        """Read one series."""
        with safe_open(_shard_file(self.folder, index // SHARD), framework="numpy") as file:
            row = index % SHARD
            volume = file.get_slice("volume")[row]
            tissue = file.get_slice("tissue")[row]
            sequence, lesion, kind = file.get_slice("labels")[row].tolist()
        return Series(volume, tissue, sequence, bool(lesion), kind)


def make_samples(
    source: SampleSource,
    split: Split,
    count: int,
    cache_dir: Path,
    workers: int,
    progress: Callable[[int], Any],
) -> Samples:
    """Simulate whatever of a split is not on disk yet.

    Parameters
    ----------
    count : int
        Series wanted.
    workers : int
        Processes that simulate.
    progress : callable
        Told how many series are there.
    """
    folder = source.folder(cache_dir, split)
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-count // SHARD)
    missing = [shard for shard in range(shards) if not _shard_file(folder, shard).exists()]
    progress((shards - len(missing)) * SHARD)
    if missing:
        _anatomy()  # built once here, not by every worker
        done = itertools.count(shards - len(missing) + 1)
        jobs = [(source, split, shard, folder) for shard in missing]
        run_jobs(_write_shard, jobs, workers, lambda _: progress(next(done) * SHARD))
    return Samples(folder, count)


def draw_kind(seed: int, not_heads: float) -> str:
    """Return what the series with this seed is of."""
    rng = np.random.default_rng([seed, 1])
    if rng.random() >= not_heads:
        return "head"
    return str(rng.choice(list(NOT_HEADS), p=list(NOT_HEADS.values())))


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.safetensors"


def _write_shard(source: SampleSource, split: Split, shard: int, folder: Path) -> None:
    series = [_simulate(source, sample_seed(source.seed, split, shard * SHARD + row)) for row in range(SHARD)]
    path = _shard_file(folder, shard)
    arrays: dict[str, NDArray[Any]] = {
        "volume": np.stack([s.volume for s in series]),
        "tissue": np.stack([s.tissue for s in series]),
        "labels": np.array([[s.sequence, s.lesion, s.kind] for s in series], np.int8),
    }
    write_safetensors(path, lambda staging: save_file(arrays, staging), writer=f"{os.getpid()}.")


def _simulate(source: SampleSource, seed: int) -> Series:
    kind = draw_kind(seed, source.not_heads)
    sample = simulate(seed, _anatomy(), source.spec, kind=kind)
    low, high = sample.window
    volume = ((sample.volume - low) / max(float(high - low), 1e-6)).clip(*STORED).astype(np.float16)
    truth = sample.labels
    head = truth.kind == "head" and truth.sequence is not None
    return Series(
        volume=volume,
        tissue=sample.tissue if head else np.zeros(volume.shape, np.uint8),
        sequence=SEQUENCES.index(truth.sequence) if truth.sequence and head else -1,
        lesion=head and truth.lesion,
        kind=KINDS.index(truth.kind),
    )


@cache
def _anatomy() -> Any:
    return load_anatomy()
