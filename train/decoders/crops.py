"""Crops of whole series: what a step of training sees of each, so that it can see more of them, and what is rare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Crop:
    """A box of patches of a series.

    Attributes
    ----------
    rows : which of the series' tokens lie in it, (K,); some come again, so that all crops of a size have as many
    tokens : their indices in the box, (K,)
    patches : the box, in patches of the grid
    """

    rows: Tensor
    tokens: Tensor
    patches: Box

    def of(self, volume: Tensor, patch_shape: tuple[int, int, int]) -> Tensor:
        """Cut the box from (..., D, H, W), whose patches are of this shape."""
        d, h, w = (slice(s.start * p, s.stop * p) for s, p in zip(self.patches, patch_shape, strict=True))
        return volume[..., d, h, w]


def draw_crop(
    tokens: Tensor,
    labels: Tensor,
    patch_shape: tuple[int, int, int],
    patch_grid: tuple[int, int, int],
    size: int,
    rng: np.random.Generator,
    rarity: float = 0.0,
) -> Crop:
    """Draw a crop that holds something.

    Every second one is around a voxel of a label, each label that there is as likely as another (as nnU-Net oversamples
    foreground, arXiv 1904.08128) or, with ``rarity``, the likelier the fewer voxels it has; the others are around any
    token.

    Parameters
    ----------
    tokens : Tensor, shape (K,), int64
        Of the series.
    labels : Tensor, shape (D, H, W), uint8
        Its map; 0 is background.
    patch_shape : tuple of int
        Voxels of the map to a patch.
    patch_grid : tuple of int
    size : int
        Patches along each axis, at most; a shorter axis is seen whole.
    rng : Generator
    rarity : float
        A label's chance goes with its number of voxels to the power of ``-rarity``.
    """
    at = np.stack(np.unravel_index(tokens.numpy(), patch_grid), axis=1)  # (K, 3)
    middle = _patch_of_a_label(labels.numpy(), patch_shape, rng, rarity) if rng.random() < 0.5 else None
    if middle is None:
        middle = at[rng.integers(len(at))]
    shape = np.minimum(size, patch_grid)
    origin = np.clip(middle - rng.integers(0, shape), 0, np.array(patch_grid) - shape)
    inside = np.flatnonzero(((at >= origin) & (at < origin + shape)).all(axis=1))
    if not len(inside):  # the label lies where no patch was kept
        return draw_crop(tokens, torch.zeros_like(labels), patch_shape, patch_grid, size, rng)
    rows = np.resize(inside, int(shape.prod()))
    places = np.ravel_multi_index(tuple((at[rows] - origin).T), tuple(shape))
    box = tuple(slice(int(a), int(a + n)) for a, n in zip(origin, shape, strict=True))
    return Crop(torch.from_numpy(rows), torch.from_numpy(places), box)


def _patch_of_a_label(
    labels: NDArray[np.uint8], patch_shape: tuple[int, int, int], rng: np.random.Generator, rarity: float
) -> NDArray[np.int64] | None:
    """Return the patch, (3,), of a voxel of a label; None where all is background."""
    counts = np.bincount(labels.ravel())[1:]
    there = np.flatnonzero(counts)
    if not len(there):
        return None
    chances = counts[there].astype(np.float64) ** -rarity
    voxels = np.flatnonzero(labels == 1 + rng.choice(there, p=chances / chances.sum()))
    voxel = np.array(np.unravel_index(rng.choice(voxels), labels.shape))
    return voxel // np.array(patch_shape)
