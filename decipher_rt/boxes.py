"""Boxes: where a localisation head finds something, in the patient's millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """A box whose edges run along the axes of the acquisition.

    Attributes
    ----------
    score : 0 to 1
    center_lps_mm : in DICOM patient coordinates (Left, Posterior, Superior)
    size_mm : along each of ``axes_lps``
    axes_lps : three unit vectors in LPS, those nearest to Superior, Anterior and Right
    """

    score: float
    center_lps_mm: Vector
    size_mm: Vector
    axes_lps: tuple[Vector, Vector, Vector]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, in micrometres at the finest."""
        return {
            "score": round(self.score, 6),
            "center_lps_mm": [round(x, 3) for x in self.center_lps_mm],
            "size_mm": [round(x, 3) for x in self.size_mm],
            "axes_lps": [[round(x, 6) for x in axis] for axis in self.axes_lps],
        }


def boxes_on_grid(found: NDArray[Any], affine_lps_mm: NDArray[np.float64], threshold: float) -> tuple[Box, ...]:
    """Turn a localisation head's output into boxes, the best first.

    Parameters
    ----------
    found : ndarray, shape (M, 7)
        For each box: score 0 to 1, centre (d, h, w) and size (d, h, w) in grid voxels.
    affine_lps_mm : ndarray, shape (4, 4)
        Of the grid: (d, h, w, 1) to LPS mm.
    threshold : float
        Boxes that score below it are left out.
    """
    columns = affine_lps_mm[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    axes = tuple(_vector(axis) for axis in (columns / spacing).T)
    boxes = []
    for row in sorted(found.astype(np.float64).tolist(), key=lambda row: -row[0]):
        if row[0] < threshold:
            continue
        center = affine_lps_mm[:3, :3] @ row[1:4] + affine_lps_mm[:3, 3]
        boxes.append(Box(row[0], _vector(center), _vector(spacing * row[4:7]), (axes[0], axes[1], axes[2])))
    return tuple(boxes)


def _vector(values: NDArray[np.float64]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
