"""Multi-crop in 3D: a crop is a box of the foreground patches of a view, so a smaller crop is just fewer tokens.

In pictures (DINO, arXiv 2104.14294) a crop is cut out and resized to a fixed size. Here nothing is resized, and a
patch keeps its place in mm:

- In MRI a millimetre means something: how wide a ventricle is must not depend on the crop it is seen in, and the
  encoder never meets another voxel size than the one that it meets at inference.
- The position code belongs to a place in the patient, in training as at inference. A code counted from the crop's own
  corner would be one that no whole series ever has.
- It costs nothing: a view is moved, mirrored and cut into patches once; its crops are rows of that table. A local crop
  of 32 tokens costs a sixteenth of the 500 of a whole head, where resized it would cost as much as a global one.

A crop that knows where it lies must still say what its teacher says of the whole: the view's shift is drawn for each
view, intensities for each crop, and most of its box's patches are dropped at random, as everywhere in training.

All tensors of a step have the same numbers of tokens, drawn for the step; everything else is drawn for each series by
its place in the global batch, so that what a process computes does not depend on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.manifest import Preprocessing

from ..views import ViewConfig, draw_movement, patches_at, ranked_patches, vary_intensities
from .config import CropConfig
from .masks import MaskPlan, block_mask, random_mask

VIEWS = 2  # global crops of a series, which the teacher sees
STRETCH = 4 / 3  # the longest side of a box against its shortest is at most this squared: DINO's 3/4 to 4/3


@dataclass(frozen=True)
class CropBatch:
    """What one process trains on in one step: V = 2 global and L local crops of B series.

    Attributes
    ----------
    global_patches : (V, B, K, P) float32, normalised to -1..1 as the encoder does it
    global_tokens : (V, B, K) int64, flat patch indices
    masks : (V, B, K) bool, tokens that the student does not see
    local_patches : (L, B, k, P) float32
    local_tokens : (L, B, k) int64
    """

    global_patches: Tensor
    global_tokens: Tensor
    masks: Tensor
    local_patches: Tensor
    local_tokens: Tensor


def crop_batch(
    volumes: Sequence[NDArray[np.float16]],
    generators: Sequence[np.random.Generator],
    sizes: tuple[int, int],
    plan: MaskPlan,
    spec: Preprocessing,
    crops: CropConfig,
    augment: ViewConfig,
) -> CropBatch:
    """Draw the crops of some series.

    Parameters
    ----------
    volumes : sequence of ndarray, shape (D, H, W)
        0 and 1 are the ends of the intensity window.
    generators : sequence of Generator
        One for each series.
    sizes : (K, k)
        Tokens of global and local crops.
    plan : MaskPlan
        How much of each global crop is masked, for these series.
    """
    K, k = sizes
    drawn = [
        _crops_of(volume, rng, K, k, spec, crops, augment) for volume, rng in zip(volumes, generators, strict=True)
    ]
    centres = patch_centres(spec)
    masks = np.zeros((VIEWS, len(drawn), K), bool)
    for (view, b), count in np.ndenumerate(plan.counts(K)):
        tokens, rng = drawn[b].global_tokens[view], generators[b]
        masks[view, b] = (
            block_mask(centres[tokens], int(count), rng) if plan.blocks else random_mask(K, int(count), rng)
        )
    return CropBatch(
        global_patches=_stack([d.global_patches for d in drawn]),
        global_tokens=_stack([d.global_tokens for d in drawn]),
        masks=torch.from_numpy(masks),
        local_patches=_stack([d.local_patches for d in drawn]),
        local_tokens=_stack([d.local_tokens for d in drawn]),
    )


def draw_sizes(crops: CropConfig, rng: np.random.Generator) -> tuple[int, int]:
    """Draw how many tokens K and k the crops of a step have, log-uniformly."""
    K, k = (round(float(np.exp(rng.uniform(*np.log(reach))))) for reach in (crops.global_tokens, crops.local_tokens))
    return K, k


def box_crop(
    centres: NDArray[np.float32], count: int, rng: np.random.Generator, stretch: float = STRETCH
) -> NDArray[np.int64]:
    """Return the ``count`` patches that lie in a box around one of them.

    The box grows around a random patch, with random proportions, until it holds enough: at the border of the head it
    reaches further inward, and the last layer is taken in part.

    Parameters
    ----------
    centres : ndarray, shape (N, 3)
        Of the patches to choose from, in mm.
    count : int
        At most N.
    stretch : float
        Sides are scaled by 1 / stretch to stretch.

    Returns
    -------
    ndarray, shape (count,), int64
        Rows of ``centres``, ascending.
    """
    sides = np.exp(rng.uniform(-np.log(stretch), np.log(stretch), 3))
    # Not quite at a patch's centre, or the opposite faces of the box would always tie.
    middle = centres[rng.integers(len(centres))] + rng.uniform(-1e-3, 1e-3, 3)
    reach = (np.abs(centres - middle) / sides).max(axis=1)
    return np.sort(np.argpartition(reach, count - 1)[:count]).astype(np.int64)


def patch_centres(spec: Preprocessing) -> NDArray[np.float32]:
    """Return the centre of every patch in mm from the grid's corner, shape (patches, 3)."""
    steps = np.array(spec.patch_shape) * np.array(spec.spacing_mm)
    return ((np.indices(spec.patch_grid).reshape(3, -1).T + 0.5) * steps).astype(np.float32)


@dataclass(frozen=True)
class _SeriesCrops:
    global_patches: NDArray[np.float32]  # (V, K, P)
    global_tokens: NDArray[np.int64]
    local_patches: NDArray[np.float32]  # (L, k, P)
    local_tokens: NDArray[np.int64]


def _crops_of(
    volume: NDArray[np.float16],
    rng: np.random.Generator,
    K: int,
    k: int,
    spec: Preprocessing,
    crops: CropConfig,
    augment: ViewConfig,
) -> _SeriesCrops:
    views = [_View.of(draw_movement(volume.shape, augment, rng)(volume), spec) for _ in range(VIEWS)]
    whole = [view.crop(K, crops.global_share, rng) for view in views]
    local = [views[i % VIEWS].crop(k, crops.local_share, rng) for i in range(crops.local_crops)]
    global_patches = np.stack([v.patches_at(t) for v, t in zip(views, whole, strict=True)]).astype(np.float32)
    local_patches = np.zeros((0, k, global_patches.shape[-1]), np.float32)
    if local:
        local_patches = np.stack([views[i % VIEWS].patches_at(t) for i, t in enumerate(local)]).astype(np.float32)
    return _SeriesCrops(
        vary_intensities(global_patches, augment, rng),
        np.stack(whole),
        vary_intensities(local_patches, augment, rng),
        np.array(local, np.int64).reshape(len(local), k),
    )


@dataclass(frozen=True)
class _View:
    """A moved series, with its patches by how much tissue they hold."""

    volume: NDArray[np.float16]
    spec: Preprocessing
    ranked: NDArray[np.int64]
    tissue: int
    centres: NDArray[np.float32]

    @classmethod
    def of(cls, volume: NDArray[np.float16], spec: Preprocessing) -> _View:
        return cls(volume, spec, *ranked_patches(volume, spec), patch_centres(spec))

    def patches_at(self, tokens: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return the voxels of some patches, (K, P)."""
        return patches_at(self.volume, tokens, self.spec)

    def crop(self, tokens: int, share: tuple[float, float], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return ``tokens`` patch indices: a box of a share of the foreground, of which the rest is dropped.

        Where the foreground is smaller than that, the next best patches fill it up, as a bucket at inference.
        """
        among = self.ranked[: max(self.tissue, tokens)]
        inside = box_crop(self.centres[among], max(tokens, round(rng.uniform(*share) * self.tissue)), rng)
        return np.sort(among[rng.choice(inside, tokens, replace=False)])


def _stack(arrays: Sequence[NDArray]) -> Tensor:
    """Stack the crops of each series (crops, ...) to (crops, B, ...)."""
    return torch.from_numpy(np.stack(arrays, axis=1))
