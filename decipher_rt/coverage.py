"""What of a volume lies beyond the encoder's grid, where nothing will look at it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.geometry import axis_order
from decipher_rt.manifest import Preprocessing
from decipher_rt.tokens import tissue_threshold
from decipher_rt.volume import Volume

# The share of all tissue that may lie beyond the grid along an axis without a word: a neck does.
MOST_UNSEEN = 0.05
AXES = ("from feet to head", "from back to front", "from left to right")


def what_is_cut(volume: Volume, window: NDArray[np.float32], spec: Preprocessing) -> list[str]:
    """Say along which axes a good part of the tissue lies beyond the grid, which is centred on the field of view.

    Parameters
    ----------
    volume : Volume
    window : (2,) its two percentiles, in stored units; tissue is what is brighter than a share of the way between them
    spec : Preprocessing
    """
    spacing = np.linalg.norm(volume.affine_lps_mm[:3, :3], axis=0)
    threshold: float | int = float(tissue_threshold(window, spec))
    if volume.voxels.dtype.kind != "f":
        threshold = math.floor(threshold)  # the same of whole numbers, which then stay what they are
    tissue: int | None = None
    cut = []
    for axis, acquired in enumerate(axis_order(volume.affine_lps_mm).permutation):
        seen_mm, count = spec.grid_shape[axis] * spec.spacing_mm[axis], volume.voxels.shape[acquired]
        beyond = int((count - seen_mm / spacing[acquired]) / 2)  # voxels, at either end
        if beyond > 0:
            along = np.moveaxis(volume.voxels, acquired, 0)
            unseen = sum(int(np.count_nonzero(end > threshold)) for end in (along[:beyond], along[count - beyond :]))
            tissue = _tissue(volume, threshold) if tissue is None else tissue
            if unseen > MOST_UNSEEN * tissue:
                share = unseen / tissue
                cut.append(f"{share:.0%} of the tissue lies beyond the {seen_mm:g} mm that the model sees {AXES[axis]}")
    return cut


def _tissue(volume: Volume, threshold: float) -> int:
    """Count the voxels above a threshold, from the histogram where there is one."""
    histogram = volume.histogram
    if histogram is None:
        return int(np.count_nonzero(volume.voxels > threshold))
    return int(histogram.counts[max(0, math.floor(threshold) + 1 - histogram.first) :].sum())
