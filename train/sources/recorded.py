"""Recorded series, DICOM or NIfTI, of a manifest or a BIDS folder: read and resampled as the runtime does it, once.

What is kept on disk are the grids, masks with them; labels, boxes and reports stay in the manifest, so that correcting
one reads no image again. Where CUDA finds a GPU, DALI resamples on it (``source.device``): not run where this was
written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from decipher_rt.errors import SeriesError
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor
from decipher_rt.series import ReadOptions, Series, find_only_series, read_series

from ..lock import one_at_a_time
from ..progress import Progress
from ..samples import STORED, Split
from .bids import left_out, read_bids
from .config import SourceConfig
from .example import Example, Facts
from .manifest import read_manifest
from .rows import MOST_NAMED, Row, SourceError, share_out
from .shards import read_example, write_missing

Device = Literal["cpu", "gpu"]
LAYOUT = 2  # of what is kept of a series; a change of how it is made needs another number


@dataclass(frozen=True)
class Recorded:
    """Makes the example of one listed series."""

    row: Row
    spec: Preprocessing
    device: Device

    def __call__(self, index: int, /) -> Example:  # noqa: ARG002 - there is one
        """Read it and bring it to the grid.

        Raises
        ------
        SourceError
            Naming where the series is listed, and what is wrong with it.
        """
        row = self.row
        try:
            volume = read_series(_only_series(row.path), ReadOptions(volume=row.volume))
            grid = _preprocessor(self.spec, self.device)(volume)
        except SeriesError as error:
            where = row.place if row.place == str(row.path) else f"{row.place}, column path: {row.path}"
            raise SourceError(f"{where}: {str(error).removeprefix(f'{row.path}: ')}") from None
        low, high = (float(w) for w in grid.window)
        unit = ((grid.volume - low) / (high - low)).clip(*STORED).astype(np.float16)
        labels = _label_map(row.mask, row.place, grid) if row.mask else None
        # Whose it is and what is known of it is not kept here.
        return Example(volume=unit, affine_lps_mm=grid.affine_lps_mm, tissue=labels, patient="")

    def file(self, cache_dir: Path) -> Path:
        """Return where it is kept: other files, another grid or another maker have another."""
        spec, row = self.spec, self.row
        made = (LAYOUT, self.device, spec.grid_shape, spec.spacing_mm, spec.window_percentiles)
        paths = [str(path.resolve()) for path in (row.path, row.mask) if path]
        digest = hashlib.sha256(json.dumps([made, row.volume, paths, row.files.state]).encode())
        return cache_dir / "recorded" / f"{digest.hexdigest()[:24]}.safetensors"


@dataclass(frozen=True)
class RecordedExamples:
    """The grids of one split, each in a file of its own, with what the manifest says of them."""

    files: tuple[Path, ...]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Return what says which series these are: a digest of the files' names, which decide the content."""
        return hashlib.sha256("\n".join(file.name for file in self.files).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Example:
        """Read one."""
        return dataclasses.replace(read_example(self.files[index], 0), **vars(self.rows[index].facts))

    def facts(self, index: int) -> Facts:
        """Return what is known of one."""
        return self.rows[index].facts


def open_recorded(
    config: SourceConfig, spec: Preprocessing, split: Split, cache_dir: Path, workers: int, progress: Progress
) -> RecordedExamples:
    """Read what is listed of a split and not on disk yet, and return its examples.

    Raises
    ------
    SourceError
    """
    found = rows_of_split(config, split)
    if config.kind == "bids" and (others := left_out(Path(config.path), config.suffixes)):
        named = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(MOST_NAMED))
        progress.warn(
            f"{config.path}: images whose suffix source.sequences lacks are left out: {others.total()} ({named})"
        )
    device: Device = "cpu"
    if config.device == "gpu" or (config.device == "auto" and torch.cuda.is_available()):
        device, workers = "gpu", 1  # one graph fills it
    shards = [(make, range(1), make.file(cache_dir)) for make in (Recorded(row, spec, device) for row in found)]
    examples = RecordedExamples(tuple(file for _, _, file in shards), found)
    lock = cache_dir / "recorded" / f".{examples.name}.lock"  # of a run's processes, which read the same list
    with one_at_a_time(lock), progress.bar(f"reading {split}", len(found)) as advance_to:
        write_missing(shards, workers, advance_to)
    return examples


def list_rows(config: SourceConfig) -> list[Row]:
    """Return what a manifest or BIDS folder lists; raise SourceError where it is broken.

    A configuration's list is read once: what a command trains on does not change while it runs.
    """
    kept = vars(config)  # beside the fields: of this object, and of no other that is equal
    if "rows" not in kept:
        path = Path(config.path)
        kept["rows"] = read_manifest(path) if config.kind == "manifest" else read_bids(path, config.suffixes)
    rows: list[Row] = kept["rows"]
    return rows


def rows_of_split(config: SourceConfig, split: Split) -> tuple[Row, ...]:
    """Return what is listed of a split; raise SourceError where the list is broken, or has nothing of it."""
    rows = list_rows(config)
    found = tuple(share_out(rows, config.seed, config.shares)[split])
    if not found:
        raise SourceError(
            f"{config.path}: none of its {len(rows)} series is of the split {split}; list some, or leave split empty "
            "and set source.shares"
        )
    return found


def _only_series(path: Path) -> Series:
    return find_only_series(path, "give a folder or a file with one")


def _label_map(path: Path, place: str, grid: Grid) -> NDArray[np.uint8]:
    """Return the labels at the centres of the grid's voxels, 0 outside the mask."""
    where = f"{place}, column mask: {path}"
    try:
        mask = read_series(_only_series(path), ReadOptions(any_modality=True))
    except SeriesError as error:
        raise SourceError(f"{where}: {str(error).removeprefix(f'{path}: ')}") from None
    if mask.series.volumes > 1:
        raise SourceError(f"{where}: holds {mask.series.volumes} volumes; give a label image with one")
    values = mask.voxels * mask.slope + mask.intercept
    labels = values.clip(0, 255).astype(np.uint8)
    if not np.array_equal(labels, values):
        raise SourceError(f"{where}: holds other values than the whole numbers 0 to 255; give a label image")
    turn = np.linalg.solve(mask.affine_lps_mm, grid.affine_lps_mm)  # grid index to mask index
    # A voxel reaches half a step beyond its centre, those at the border too: plain "constant" would cut them there.
    found: NDArray[np.uint8] = affine_transform(
        labels, turn[:3, :3], turn[:3, 3], grid.volume.shape, order=0, mode="grid-constant", cval=0
    )
    if labels.any() and not found.any() and not _reaches(labels, turn, grid.volume.shape):
        raise SourceError(f"{where}: none of its labels lies in the field of view of the series; is it of another one?")
    return found


def _reaches(labels: NDArray[np.uint8], turn: NDArray[Any], shape: Sequence[int]) -> bool:
    """Return whether a labelled voxel lies in the grid; one that is small may hold none of its voxels' centres."""
    back = np.linalg.inv(turn)
    places = np.argwhere(labels) @ back[:3, :3].T + back[:3, 3]
    return bool(((places >= -0.5) & (places < np.asarray(shape) - 0.5)).all(axis=1).any())


_ready: dict[tuple[str, Device], Preprocessor] = {}  # of this process: half a second each


def _preprocessor(spec: Preprocessing, device: Device) -> Preprocessor:
    key = repr(spec), device
    if key not in _ready:
        _ready[key] = Preprocessor(None, spec, device)
    return _ready[key]
