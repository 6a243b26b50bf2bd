"""Views of a stored series: moved, mirrored, with other intensities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.manifest import Preprocessing
from decipher_rt.tokens import count_in_patches, tissue_threshold

UNIT_WINDOW = np.array([0, 1], np.float32)


@dataclass(frozen=True)
class ViewConfig:
    """What each view of a stored series is changed by; all are drawn anew for every view.

    ``shift_voxels`` moves the series within the grid, ``flip`` is the chance of exchanging left and right, ``window``
    moves both ends of the intensity window (share of its width, standard deviation), ``gamma`` bends intensities
    (standard deviation of the log exponent), ``noise`` is the largest standard deviation of added noise (share of the
    window).
    """

    shift_voxels: int = 8
    flip: float = 0.5
    window: float = 0.08
    gamma: float = 0.15
    noise: float = 0.04

    def check(self, key: str = "augment") -> None:
        """Raise ValueError by key where a value cannot be used."""
        for name in ("shift_voxels", "window", "gamma", "noise"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{key}.{name} is {value}, expected 0 or more")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"{key}.flip is {self.flip}, expected 0 to 1")


def to_patches(volume: NDArray[Any], spec: Preprocessing) -> NDArray[Any]:
    """Return the grid (D, H, W) as rows (patches, voxels of a patch), both row-major."""
    return _by_patch(volume, spec).reshape(spec.patches, -1)


def patches_at(volume: NDArray[Any], tokens: NDArray[np.int64], spec: Preprocessing) -> NDArray[Any]:
    """Return those rows of `to_patches` without making the others, (K, voxels of a patch)."""
    patches = _by_patch(volume, spec)[np.unravel_index(tokens, spec.patch_grid)]
    return patches.reshape(len(tokens), math.prod(spec.patch_shape))


def _by_patch(volume: NDArray[Any], spec: Preprocessing) -> NDArray[Any]:
    """See the grid (D, H, W) as patches of voxels, (gd, gh, gw, pd, ph, pw); nothing is copied."""
    (gd, gh, gw), (pd, ph, pw) = spec.patch_grid, spec.patch_shape
    return volume.reshape(gd, pd, gh, ph, gw, pw).transpose(0, 2, 4, 1, 3, 5)


def ranked_patches(volume: NDArray[np.float16], spec: Preprocessing) -> tuple[NDArray[np.int64], int]:
    """Return the patches of a stored series, those with most tissue first, and how many are tissue patches.

    They are those of `decipher_rt.tokens`. Half-precision numbers from zero up are ordered as their bits, and the bits
    of negative ones are negative: voxels are compared without converting them.
    """
    threshold = tissue_threshold(UNIT_WINDOW, spec)
    below = np.float16(threshold)  # the largest that is not above the threshold
    if below > threshold:
        below = np.nextafter(below, np.float16(0))
    counts = count_in_patches(volume.view(np.int16) > below.view(np.int16), spec)
    tissue = int((counts >= spec.min_tissue * np.prod(spec.patch_shape)).sum())
    return np.argsort(-counts, kind="stable"), tissue


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


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    shift = max(-size, min(shift, size))
    return slice(max(shift, 0), size + min(shift, 0)), slice(max(-shift, 0), size + min(-shift, 0))


def vary_intensities(
    patches: NDArray[np.float32], augment: ViewConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Add noise to half of B, move the window, bend by gamma; clip and map to -1..1 as the encoder does.

    Parameters
    ----------
    patches : ndarray, shape (B, K, P)
        0 and 1 are the ends of the intensity window. What is returned is made in its place.
    """
    B = len(patches)

    def each(values: NDArray[np.float64]) -> NDArray[np.float32]:
        return values.astype(np.float32).reshape(B, 1, 1)

    noise = rng.uniform(0, augment.noise, B) * (rng.random(B) < 0.5)
    low, high = each(rng.normal(0, augment.window / 2, B)), each(1 + rng.normal(0, augment.window, B))
    gamma = each(np.exp(rng.normal(0, augment.gamma, B)))
    for b in np.flatnonzero(noise):
        patches[b] += np.float32(noise[b]) * rng.standard_normal(patches[b].shape, dtype=np.float32)
    patches -= low
    patches /= np.maximum(high - low, 0.5)
    patches.clip(0, 1, out=patches)
    with np.errstate(divide="ignore"):  # a power by its logarithm, several times as fast; of 0 it is 0
        np.log(patches, out=patches)
    patches *= gamma
    np.exp(patches, out=patches)
    patches *= 2
    patches -= 1
    return patches
