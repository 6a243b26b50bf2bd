"""Manifests for tests: a list written beside some series, and opened as a command opens it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from decipher_rt.manifest import Preprocessing
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import Example, Examples, SourceConfig, open_source
from decipher_rt.train.sources.recorded import rows_of_split
from decipher_rt.train.sources.rows import by_place

PIECES = Preprocessing(grid_shape=(16,) * 3, spacing_mm=(2.0,) * 3, patch_shape=(8,) * 3, token_buckets=(8,))
TURNED = np.array([[0, 1.5, 0, -3], [1.5, 0, 0, -2], [0, 0, 2.5, -4], [0, 0, 0, 1]])  # another grid, other axes


def opened(config: SourceConfig, folder: Path, split: Any = "train", spec: Preprocessing = PIECES) -> Examples:
    return open_source(again(config), spec, split, folder, 1, Progress())


def as_listed(config: SourceConfig, examples: Examples) -> list[Example]:
    """The train split in the order of the manifest's lines."""
    places = [row.place for row in rows_of_split(again(config), "train")]
    return [examples[i] for i in sorted(range(len(examples)), key=lambda i: by_place(places[i]))]


def again(config: SourceConfig) -> SourceConfig:
    """The configuration as the next command reads it, with what is listed then."""
    return dataclasses.replace(config)


def write_csv(folder: Path, *rows: str, header: str = "path,patient,split,sequence,age,report,region,volume") -> Path:
    path = folder / "cohort.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def masked(cohort: Path) -> SourceConfig:
    """A manifest of a series with a mask, not compressed, and of one without."""
    nibabel.save(nibabel.Nifti1Image(np.ones((14, 16, 12), np.uint8), TURNED), cohort / "mask.nii")
    path = write_csv(cohort, "c.nii.gz,p,train,mask.nii", "a,p,train,", header="path,patient,split,mask")
    return SourceConfig(kind="manifest", path=str(path))
