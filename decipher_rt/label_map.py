"""Label maps: what a segmentation head says of each voxel of the grid, and the same in the geometry of the source.

A grid's axes are those of the acquisition, permuted and reversed (``decipher_rt.preprocess.plan``). So the way from one
to the other is a scale and a shift along each axis, and nearest-neighbour resampling picks whole planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import SeriesError

Shape = tuple[int, int, int]

# Largest distance, in voxels over a whole volume, by which two axes may part and still count as parallel.
PARALLEL_VOXELS = 0.1
CUBIC_MM_PER_ML = 1000.0
# A plane midway between two takes the later one, also where rounding has put it this much of a voxel before the middle:
# whole planes would else go one way here and the other way in the C library.
MIDWAY = 1e-6


@dataclass(frozen=True)
class LabelMap:
    """Voxels with names.

    Attributes
    ----------
    voxels : ndarray, shape (D, H, W), uint8
        Indices into ``labels``; 0 is background.
    labels : tuple of str
        The first names the background.
    affine_lps_mm : ndarray, shape (4, 4), float64
        Maps index (d, h, w, 1) to DICOM patient coordinates (LPS) in mm.
    """

    voxels: NDArray[np.uint8]
    labels: tuple[str, ...]
    affine_lps_mm: NDArray[np.float64]

    def volumes_ml(self) -> dict[str, float]:
        """Return the volume of every label but the background, in millilitres."""
        counts = np.bincount(self.voxels.ravel(), minlength=len(self.labels))
        voxel_ml = abs(float(np.linalg.det(self.affine_lps_mm[:3, :3]))) / CUBIC_MM_PER_ML
        return {name: int(counts[i]) * voxel_ml for i, name in enumerate(self.labels) if i > 0}


def strided_affine(affine_lps_mm: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """Return the affine of a grid whose voxels are blocks of ``stride`` voxels along each axis of another."""
    block = np.diag([stride, stride, stride, 1.0])
    block[:3, 3] = (stride - 1) / 2
    return affine_lps_mm @ block


def within_source(
    label_map: LabelMap, source_affine_lps_mm: NDArray[np.float64], shape: Sequence[int]
) -> NDArray[np.uint8]:
    """Return the map's voxels (D, H, W), those whose centre lies outside a source volume of ``shape`` as background."""
    voxels = label_map.voxels.copy()
    for axis, (source_axis, positions) in enumerate(
        _positions(label_map.affine_lps_mm, label_map.voxels.shape, source_affine_lps_mm)
    ):
        nearest = _nearest(positions)
        outside = (nearest < 0) | (nearest >= shape[source_axis])
        voxels[(slice(None),) * axis + (outside,)] = 0
    return voxels


def on_source(
    label_map: LabelMap,
    source_affine_lps_mm: NDArray[np.float64],
    shape: Sequence[int],
    planes: Sequence[int | None] = (None, None, None),
) -> NDArray[np.uint8]:
    """Resample labels to a source volume: each of its voxels takes the label that its centre lies in.

    Parameters
    ----------
    label_map : LabelMap
    source_affine_lps_mm : ndarray, shape (4, 4)
        Of the source: (d, h, w, 1) to LPS mm.
    shape : (D, H, W) of the source
    planes : for each axis of the source, one index or None
        One index picks that plane only; its axis stays, with one entry.

    Returns
    -------
    ndarray, (D, H, W) of the source, uint8
        0 outside the label map.

    Raises
    ------
    SeriesError
        If the axes of the two are not parallel.
    """
    permutation, picks, inside = [], [], []
    for axis, (map_axis, every) in enumerate(_positions(source_affine_lps_mm, shape, label_map.affine_lps_mm)):
        plane = planes[axis]
        positions = every if plane is None else every[plane : plane + 1]
        indices = _nearest(positions)
        size = label_map.voxels.shape[map_axis]
        permutation.append(map_axis)
        picks.append(np.clip(indices, 0, size - 1))
        inside.append((indices >= 0) & (indices < size))
    resampled: NDArray[np.uint8] = label_map.voxels.transpose(permutation)[np.ix_(*picks)]
    for axis, good in enumerate(inside):
        if not good.all():
            resampled[(slice(None),) * axis + (~good,)] = 0
    return resampled


def _nearest(positions: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(positions + 0.5 + MIDWAY).astype(np.int64)


def _positions(
    affine: NDArray[np.float64], shape: Sequence[int], other: NDArray[np.float64]
) -> list[tuple[int, NDArray[np.float64]]]:
    """For each axis of one volume: the axis of the other that it runs along, and where its planes lie on that axis."""
    to_other = np.linalg.inv(other) @ affine
    found = []
    for axis, size in enumerate(shape):
        column = to_other[:3, axis]
        along = int(np.abs(column).argmax())
        astray = np.abs(np.delete(column, along)) * size
        if not (astray <= PARALLEL_VOXELS).all():
            raise SeriesError("the label map and the volume have axes that are not parallel: it cannot be laid over it")
        found.append((along, column[along] * np.arange(size) + to_other[along, 3]))
    if sorted(along for along, _ in found) != [0, 1, 2]:
        raise SeriesError("the label map and the volume have axes that are not parallel: it cannot be laid over it")
    return found
