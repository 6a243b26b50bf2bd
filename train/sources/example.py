"""What every source of training data yields: one series on the encoder's grid with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Label = str | float


@dataclass(frozen=True)
class Box:
    """A finding's bounding box.

    Attributes
    ----------
    center_lps_mm : middle, in DICOM patient coordinates
    size_mm : extent along the grid's S, A, R axes
    label : what it is, e.g. "plaque"; empty where nobody said
    """

    center_lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is known of a series beside its voxels.

    Attributes
    ----------
    labels : mapping of str to str or float
        Truth by name, e.g. ``sequence="T1w"``, ``lesion="present"``, ``brain_volume_ml=1203.4``. What is absent is
        unknown, and trains nothing.
    report : tuple of str
        Sentences; empty where there is no report.
    boxes : tuple of Box, or None
        Findings; empty where there are none, ``None`` where nobody looked.
    region : str or None
        Body region or organ: batches of reports are drawn within one (hard negatives).
    patient : str
        Pseudonymous key; splits are by patient.
    kind : str
        One of `decipher_rt.train.data.sample.KINDS`: "head", or what it is instead. "head" for real data.
    """

    labels: Mapping[str, Label] = field(default_factory=dict)
    report: tuple[str, ...] = ()
    boxes: tuple[Box, ...] | None = None
    region: str | None = None
    patient: str
    kind: str = "head"


@dataclass(frozen=True, kw_only=True)
class Example(Facts):
    """One series on the grid.

    Attributes
    ----------
    volume : ndarray, shape (D, H, W), float16
        Axes to S, A, R. 0 and 1 are the ends of its intensity window, clipped to `decipher_rt.train.samples.STORED`.
    affine_lps_mm : ndarray, shape (4, 4), float64
        Grid index (d, h, w, 1) to LPS mm.
    tissue : ndarray, shape (D, H, W), uint8, or None
        Of simulated series the index in `decipher_rt.train.data.sample.LABELS`, of a manifest's what its mask says;
        ``None`` where nobody segmented.
    """

    volume: NDArray[np.float16]
    affine_lps_mm: NDArray[np.float64]
    tissue: NDArray[np.uint8] | None = None


class Examples(Protocol):
    """Examples by number, on disk or in memory; the same number is always the same example."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, index: int, /) -> Example:
        """Read one, voxels included."""
        ...

    def facts(self, index: int) -> Facts:
        """Return what is known of one without reading its voxels."""
        ...


class ListedExamples:
    """Examples that are in memory."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._examples)

    def __getitem__(self, index: int, /) -> Example:
        """Return one."""
        return self._examples[index]

    def facts(self, index: int) -> Facts:
        """Return what is known of one."""
        return self._examples[index]
