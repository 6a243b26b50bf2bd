"""Volume: the voxels of one series as the scanner stored them, where they lie in the patient, and what was said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Acquisition:
    """What the header says of how the image was made; ``None`` where it says nothing."""

    modality: str | None = None
    body_part: str | None = None
    field_strength_t: float | None = None
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    scanning_sequence: str | None = None
    image_type: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeriesInfo:
    """Which series a volume comes from.

    Attributes
    ----------
    uid : str
        Series Instance UID (0020,000E); for NIfTI a name-based UUID derived from the file's bytes, as ``2.25.<int>``.
    path : Path
        Folder that holds all its files, archive or file.
    files : int
        Number of files the series was read from.
    volume_index, volumes : int
        Which of how many volumes of the series this is, from 0.
    warnings : tuple of str
        What a careful reader would want to know (dropped duplicates, other orientations, ignored files ...).
    patient : dict
        Empty unless the caller asked to keep protected health information (``keep_phi``).
    """

    uid: str
    path: Path
    manufacturer: str = ""
    description: str = ""
    files: int = 0
    volume_index: int = 0
    volumes: int = 1
    acquisition: Acquisition = field(default_factory=Acquisition)
    warnings: tuple[str, ...] = ()
    patient: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Histogram:
    """Exact histogram of stored integers: ``counts[i]`` voxels have the value ``first + i``."""

    first: int
    counts: NDArray[np.int64]

    def percentiles(self, q: tuple[float, float]) -> tuple[float, float]:
        """Return the two percentiles (0 to 100) as ``numpy.percentile`` with ``method="inverted_cdf"`` defines them."""
        total = np.cumsum(self.counts)
        ranks = np.maximum(np.ceil(np.asarray(q) / 100.0 * total[-1]), 1)
        low, high = self.first + np.searchsorted(total, ranks)
        return float(low), float(high)


@dataclass(frozen=True)
class Volume:
    """One volume in the axes of its acquisition.

    Attributes
    ----------
    voxels : ndarray, shape (D, H, W) = (slice, row, column), C-contiguous
        uint8, int16 or uint16 as stored; float32, already rescaled, where the file holds more than 16 bits or
        floats, where the slope varies by slice, or where it is not positive.
    affine_lps_mm : ndarray, shape (4, 4), float64
        Maps array index (d, h, w, 1) to DICOM patient coordinates (Left, Posterior, Superior) in millimetres
        (PS3.3 C.7.6.2.1.1).
    slope, intercept : float
        ``voxels * slope + intercept`` is the value in the scanner's units (PS3.3 C.11.1); slope > 0.
    histogram : Histogram or None
        Of ``voxels``, filled while reading; ``None`` for float32.
    series : SeriesInfo
    """

    voxels: NDArray[Any]
    affine_lps_mm: NDArray[np.float64]
    series: SeriesInfo
    slope: float = 1.0
    intercept: float = 0.0
    histogram: Histogram | None = None

    def percentiles(self, q: tuple[float, float]) -> tuple[float, float]:
        """Return two percentiles (0 to 100) of ``voxels``, exact, in stored units."""
        if self.histogram is not None:
            return self.histogram.percentiles(q)
        low, high = np.percentile(self.voxels, q, method="inverted_cdf")
        return float(low), float(high)
