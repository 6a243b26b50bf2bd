"""Batches of training views: a stored series moved, mirrored, with other intensities and some tokens dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid
from decipher_rt.tokens import tissue_counts

from .data.sample import LABELS
from .first_config import AugmentConfig, ViewConfig
from .samples import Series

LESION_LABEL = LABELS.index("lesion")
TISSUE_LABELS = range(1, len(LABELS))
UNIT_WINDOW = np.array([0, 1], np.float32)
LESION_VOXELS = 4  # a patch with fewer lesion voxels is neither a positive nor a negative example


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes
    ----------
    patches : (B, K, P) float32, normalised to -1..1 as the encoder does it
    tokens : (B, K) int64, flat patch indices
    sequence : (B,) int64, -1 where it is no head
    lesion : (B,) float32, 1 where a lesion lies in one of these tokens
    lesion_tokens : (B, K) float32, 1 lesion, 0 none, -1 too little to say
    tissue : (B, K, 4) float32, share of grey, white, CSF and lesion among the voxels of each token
    head : (B,) float32
    """

    patches: Tensor
    tokens: Tensor
    sequence: Tensor
    lesion: Tensor
    lesion_tokens: Tensor
    tissue: Tensor
    head: Tensor


def training_batch(
    series: Sequence[Series], spec: Preprocessing, augment: AugmentConfig, rng: np.random.Generator, *, whole: bool
) -> Batch:
    """Draw one view of each series.

    Parameters
    ----------
    whole : bool
        Keep all tissue tokens, as at inference; else a share of them that is drawn for the batch.
    """
    volumes, tissues = zip(*(_move(s, augment, rng) for s in series), strict=True)
    counts = [tissue_counts(Grid(v.astype(np.float32), UNIT_WINDOW, np.eye(4)), spec) for v in volumes]
    needed = [int((c >= spec.min_tissue * np.prod(spec.patch_shape)).sum()) for c in counts]
    head = np.array([s.head for s in series])
    # As many as the fullest head needs: noise fills the grid, and would make every batch as long.
    most = max((n for n, is_head in zip(needed, head, strict=True) if is_head), default=spec.patches // 2)
    K = max(1, round(most * (1.0 if whole else rng.uniform(*augment.keep))))
    tokens = np.stack([_choose(c, max(K, n), K, rng) for c, n in zip(counts, needed, strict=True)])
    patches = np.stack([to_patches(v, spec)[t] for v, t in zip(volumes, tokens, strict=True)]).astype(np.float32)
    labels = np.stack([to_patches(m, spec)[t] for m, t in zip(tissues, tokens, strict=True)])
    lesion_voxels = (labels == LESION_LABEL).sum(axis=-1)
    lesion_tokens = np.where(lesion_voxels >= LESION_VOXELS, 1.0, np.where(lesion_voxels == 0, 0.0, -1.0))
    return Batch(
        patches=torch.from_numpy(vary_intensities(patches, augment, rng)),
        tokens=torch.from_numpy(tokens),
        sequence=torch.tensor([s.sequence for s in series]),
        lesion=torch.from_numpy(((lesion_voxels > 0).any(axis=1) & head).astype(np.float32)),
        lesion_tokens=torch.from_numpy(lesion_tokens.astype(np.float32)),
        tissue=torch.from_numpy(np.stack([(labels == i).mean(-1, dtype=np.float32) for i in TISSUE_LABELS], -1)),
        head=torch.from_numpy(head.astype(np.float32)),
    )


def to_patches(volume: NDArray[Any], spec: Preprocessing) -> NDArray[Any]:
    """Return the grid (D, H, W) as rows (patches, voxels of a patch), both row-major."""
    (gd, gh, gw), (pd, ph, pw) = spec.patch_grid, spec.patch_shape
    return volume.reshape(gd, pd, gh, ph, gw, pw).transpose(0, 2, 4, 1, 3, 5).reshape(gd * gh * gw, pd * ph * pw)


def draw_movement(
    shape: tuple[int, ...], augment: ViewConfig, rng: np.random.Generator
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Draw a shift within the grid (what enters is air, as the runtime pads) and an exchange of left and right.

    Returns
    -------
    callable
        Moves an array (D, H, W); left and right are the ends of W.
    """
    reach = augment.shift_voxels
    shift = rng.integers(-reach, reach + 1, size=3)
    flip = rng.random() < augment.flip
    to, source = zip(*(_overlap(int(s), n) for s, n in zip(shift, shape, strict=True)), strict=True)

    def move(array: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros_like(array)
        out[to] = array[source]
        return out[..., ::-1] if flip else out

    return move


def _move(
    series: Series, augment: AugmentConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    move = draw_movement(series.volume.shape, augment, rng)
    return move(series.volume), move(series.tissue)


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    return slice(max(shift, 0), size + min(shift, 0)), slice(max(-shift, 0), size + min(-shift, 0))


def _choose(counts: NDArray[np.int64], among: int, K: int, rng: np.random.Generator) -> NDArray[np.int64]:
    best = np.argsort(-counts, kind="stable")[:among]
    return np.sort(rng.choice(best, K, replace=False) if among > K else best).astype(np.int64)


def vary_intensities(
    patches: NDArray[np.float32], augment: ViewConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Add noise, move the window, bend by gamma, for each of B; clip and map to -1..1 as the encoder does.

    Parameters
    ----------
    patches : ndarray, shape (B, K, P)
        0 and 1 are the ends of the intensity window.
    """
    B = len(patches)

    def each(values: NDArray[np.float64]) -> NDArray[np.float32]:
        return values.astype(np.float32).reshape(B, 1, 1)

    noise = each(rng.uniform(0, augment.noise, B) * (rng.random(B) < 0.5))
    low, high = each(rng.normal(0, augment.window / 2, B)), each(1 + rng.normal(0, augment.window, B))
    gamma = each(np.exp(rng.normal(0, augment.gamma, B)))
    patches = patches + noise * rng.standard_normal(patches.shape, dtype=np.float32)
    return (((patches - low) / np.maximum(high - low, 0.5)).clip(0, 1) ** gamma) * 2 - 1
