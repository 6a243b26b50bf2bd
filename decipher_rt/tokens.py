"""Foreground tokens: the patches of a grid that hold tissue are the encoder's tokens; air costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess.grid import Grid


@dataclass(frozen=True)
class Tokens:
    """The patches that the encoder sees.

    Attributes
    ----------
    indices : ndarray, shape (K,), int64
        Flat patch indices, row-major over the patch grid (D, H, W), ascending. K is one of the manifest's buckets.
    kept : int
        Tissue patches n <= K; the other K - n are the next best.
    total : int
        Patches of the grid.
    """

    indices: NDArray[np.int64]
    kept: int
    total: int


def tissue_threshold(window: NDArray[np.float32], spec: Preprocessing) -> np.float32:
    """Return what a voxel of tissue is above: ``spec.tissue_level`` of the way from one percentile to the other."""
    low, high = (np.float32(x) for x in window)
    return low + np.float32(spec.tissue_level) * (high - low)


def tissue_counts(grid: Grid, spec: Preprocessing) -> NDArray[np.int64]:
    """Count the tissue voxels of every patch; shape (patches,), row-major over the patch grid."""
    return count_in_patches(grid.volume > tissue_threshold(grid.window, spec), spec)


def count_in_patches(voxels: NDArray[np.bool_], spec: Preprocessing) -> NDArray[np.int64]:
    """Count the voxels of every patch that are true; shape (patches,), row-major over the patch grid.

    Parameters
    ----------
    voxels : ndarray, shape (D, H, W)
    spec : Preprocessing
    """
    (gd, gh, gw), (pd, ph, pw) = spec.patch_grid, spec.patch_shape
    # The outer axes first: the sums then run along whole rows, and little is left for the innermost axis. Each is kept
    # in the fewest bytes that hold it.
    rows = voxels.view(np.uint8).reshape(gd, pd, gh, ph, gw * pw).sum(axis=1, dtype=np.min_scalar_type(pd))
    rows = rows.sum(axis=2, dtype=np.min_scalar_type(pd * ph))
    counts: NDArray[np.int64] = rows.reshape(gd * gh * gw, pw).sum(axis=1, dtype=np.int64)
    return counts


def select_tokens(grid: Grid, spec: Preprocessing) -> Tokens:
    """Choose the K best patches of a grid by tissue; see `rank_patches`."""
    return rank_patches(tissue_counts(grid, spec), spec)


def rank_patches(counts: NDArray[np.integer], spec: Preprocessing) -> Tokens:
    """Choose the K best patches by tissue, where K is the smallest bucket that holds all n tissue patches.

    A patch is a tissue patch when at least ``spec.min_tissue`` of its voxels are tissue. Equal patches rank by index.

    Parameters
    ----------
    counts : ndarray, shape (patches,)
        Tissue voxels of every patch, row-major over the patch grid.
    spec : Preprocessing
    """
    kept = int((counts >= spec.min_tissue * np.prod(spec.patch_shape)).sum())
    size = next(bucket for bucket in spec.token_buckets if bucket >= kept)
    best = np.argsort(-counts, kind="stable")[:size]
    return Tokens(np.sort(best).astype(np.int64), kept, spec.patches)
