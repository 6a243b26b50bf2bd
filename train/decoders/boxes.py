"""Boxes on the grid: from patient millimetres to voxels, and the loss of one box against another.

A box is six numbers: centre d, h, w and size d, h, w, in grid voxels; the centre of voxel (0, 0, 0) is (0, 0, 0). Grid
axes run to S, A, R, along which sizes in mm are given too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def box_to_voxels(
    center_lps_mm: Sequence[float], size_mm: Sequence[float], affine_lps_mm: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return a box (6,) on the grid.

    Parameters
    ----------
    center_lps_mm : middle of the box, DICOM patient coordinates
    size_mm : along the grid's axes
    affine_lps_mm : (4, 4), grid index (d, h, w, 1) to LPS mm
    """
    centre = np.linalg.solve(affine_lps_mm, np.array([*center_lps_mm, 1.0]))[:3]
    spacing = np.linalg.norm(affine_lps_mm[:3, :3], axis=0)
    return np.concatenate([centre, np.asarray(size_mm) / spacing]).astype(np.float32)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalised intersection over union, -1 to 1, of boxes (..., 6) (arXiv 1902.09630, algorithm 1)."""
    a_low, a_high = a[..., :3] - a[..., 3:] / 2, a[..., :3] + a[..., 3:] / 2
    b_low, b_high = b[..., :3] - b[..., 3:] / 2, b[..., :3] + b[..., 3:] / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(dim=-1)
    union = a[..., 3:].prod(dim=-1) + b[..., 3:].prod(dim=-1) - shared
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(dim=-1)
    return shared / union.clamp_min(1e-6) - (hull - union) / hull.clamp_min(1e-6)


def patch_centres(patch_grid: Sequence[int], patch_shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the centre of every patch in grid voxels, (patches, 3), row-major."""
    axes = [np.arange(n) * p + (p - 1) / 2 for n, p in zip(patch_grid, patch_shape, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)


def overlap(centres: NDArray[np.float32], patch_shape: Sequence[int], box: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how many voxels of each patch (K, 3 centres) lie in a box (6,), fractions of voxels counted."""
    half = np.asarray(patch_shape) / 2
    low = np.maximum(centres - half, box[:3] - box[3:] / 2)
    high = np.minimum(centres + half, box[:3] + box[3:] / 2)
    return np.clip(high - low, 0, None).astype(np.float64).prod(axis=-1)
