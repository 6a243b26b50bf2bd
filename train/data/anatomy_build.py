"""Build heads: brain fractions from a template, the rest of the head around them, coded into palettes.

Any skull-stripped T1 image in MNI space can be the base: `fractions_from_t1` with its probability maps, or
`fractions_from_image` without.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .anatomy import COARSE_MM, FINE_MM, LEVELS, LOW_MM, SHAPE, Map, write_head
from .head_shape import CSF, GREY, WHITE, Frame, build_head
from .susceptibility import field_shift_ppm
from .tissues import TISSUES

AIR = TISSUES.index("air")


def build_heads(brain: NDArray[np.float32], files: list[Path]) -> None:
    """Build those of ``files`` that do not exist, the i-th with seed i, around a brain (3, S, A, R)."""
    for seed, path in enumerate(files):
        if not path.exists():
            write_head(path, *build_head_maps(brain, seed))


def mni152_brain() -> NDArray[np.float32]:
    """Grey, white and CSF fractions of the ICBM152 2009a template in nilearn's wheel, (3, S, A, R) on the fine lattice.

    The template's own T1 contrast, sharpened, decides the mixture: the probability maps are averages over subjects and
    blurred. They only say which intensity is which tissue. Source: Fonov 2011, NeuroImage 54:313.
    """
    from nilearn import datasets

    images = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    ]
    t1, grey, white = (_on_lattice(np.asarray(image.dataobj, np.float32), image.affine) for image in images)
    return fractions_from_t1(t1, grey, white)


def fractions_from_image(path: Path) -> NDArray[np.float32]:
    """Fractions from a skull-stripped T1 NIfTI image in MNI space alone, (3, S, A, R) on the fine lattice.

    Which intensity is which tissue comes from three clusters of the intensities in its core.
    """
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.squeeze_image(nibabel.load(path)))
    if len(image.shape) != 3:
        raise ValueError(f"has {len(image.shape)} axes, expected 3")
    t1 = _on_lattice(np.asarray(image.dataobj, np.float32), image.affine)
    mask, sharp = _mask_and_sharpen(t1, 0.3)
    values = sharp[ndimage.binary_erosion(mask, iterations=2)][::7]
    centres = np.percentile(values, [5, 45, 85])
    for _ in range(30):  # Lloyd's algorithm in one dimension
        nearest = np.abs(values[:, None] - centres).argmin(1)
        centres = np.array([values[nearest == i].mean() for i in range(3)])
    return _mixtures(sharp, mask, [float(c) for c in centres])


def fractions_from_t1(
    t1: NDArray[np.float32], grey: NDArray[np.float32], white: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Turn a skull-stripped T1 image (0 outside) and its probability maps into fractions of grey, white and CSF."""
    mask, sharp = _mask_and_sharpen(t1, 0.9)
    core = ndimage.binary_erosion(mask, iterations=4)
    peaks = [
        float(np.percentile(sharp[core & (grey + white < 0.15)], 40)),
        float(np.median(sharp[core & (grey > 0.92)])),
        float(np.median(sharp[core & (white > 0.97)])),
    ]
    return _mixtures(sharp, mask, peaks)


def _mask_and_sharpen(t1: NDArray[np.float32], amount: float) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    mask = ndimage.binary_fill_holes(t1 > 0.05 * t1.max())
    return mask, np.asarray(t1 + amount * (t1 - ndimage.gaussian_filter(t1, 2.2)), np.float32)


def _mixtures(sharp: NDArray[np.float32], mask: NDArray[np.bool_], peaks: list[float]) -> NDArray[np.float32]:
    """Mix neighbours on the scale CSF, grey, white by where an intensity lies between their peaks."""
    to_grey = np.clip((sharp - peaks[0]) / (peaks[1] - peaks[0]), 0, 1)
    to_white = np.clip((sharp - peaks[1]) / (peaks[2] - peaks[1]), 0, 1)
    # Average intensity of cortex lies below that of deep grey because of sulci: only a clear deficit is CSF.
    csf = np.clip(1.35 * (1 - to_grey) - 0.1, 0, 1)
    rest = 1 - csf
    return (np.stack([rest * (1 - to_white), rest * to_white, csf]) * mask).astype(np.float32)


def build_head_maps(brain: NDArray[np.float32], seed: int) -> tuple[Map, Map, NDArray[np.float32]]:
    """Paint a head around a brain; return the fine map, the coarse map and the coarse field shift in ppm."""
    s, a, r = SHAPE
    frame = Frame(
        (LOW_MM[0] + FINE_MM * np.arange(r, dtype=np.float32))[None, None, :],
        (LOW_MM[1] + FINE_MM * np.arange(a, dtype=np.float32))[None, :, None],
        (LOW_MM[2] + FINE_MM * np.arange(s, dtype=np.float32))[:, None, None],
        FINE_MM,
    )
    inside = brain.sum(0)
    labels = build_head(frame, inside > 0.5, np.random.default_rng([seed, 0x48454144]))
    fine = np.zeros((len(TISSUES), *SHAPE), np.uint8)
    share = np.clip(inside, 0, 1)
    for tissue in range(len(TISSUES)):
        fine[tissue] = np.round(LEVELS * (labels == tissue) * (1 - share))
    for row, tissue in enumerate((GREY, WHITE, CSF)):
        fine[tissue] += np.round(LEVELS * brain[row]).astype(np.uint8)
    coarse = fine.reshape(len(TISSUES), s // 2, 2, a // 2, 2, r // 2, 2).sum((2, 4, 6), dtype=np.uint16) // 8
    origin = tuple(v + FINE_MM / 2 for v in LOW_MM)
    small = _palette(coarse.astype(np.uint8), (origin[0], origin[1], origin[2]), COARSE_MM)
    air = small.palette[:, AIR][small.codes]
    return _palette(fine, LOW_MM, FINE_MM), small, field_shift_ppm(air)


def _palette(fractions: NDArray[np.uint8], origin: tuple[float, float, float], step: float) -> Map:
    """Code the distinct mixtures of (T, S, A, R) fractions in sixteenths."""
    tissues = len(fractions)
    flat = fractions.reshape(tissues, -1)
    # A mixture has few tissues: a mixed-radix key in 64 bits identifies it (17 levels, 12 tissues < 2**50).
    key = np.zeros(flat.shape[1], np.int64)
    for row in flat:
        key = key * (LEVELS + 1) + row
    unique, codes = np.unique(key, return_inverse=True)
    if len(unique) > 2**16:
        raise ValueError(f"{len(unique)} distinct mixtures do not fit 16-bit codes")
    rows = np.empty((len(unique), tissues), np.float32)
    rest = unique.copy()
    for tissue in reversed(range(tissues)):
        rest, rows[:, tissue] = np.divmod(rest, LEVELS + 1)
    total = rows.sum(1, keepdims=True)
    palette = np.divide(rows, total, out=np.zeros_like(rows), where=total > 0)
    palette[total[:, 0] == 0, AIR] = 1.0
    return Map(codes.reshape(fractions.shape[1:]).astype(np.uint16), palette, origin, step)


def _on_lattice(image: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Put an image (x, y, z order, RAS+ affine) on the fine lattice, (S, A, R), 0 outside."""
    inverse = np.linalg.inv(affine)
    to_index = inverse[:3, :3] * FINE_MM
    offset = inverse[:3, :3] @ np.array(LOW_MM) + inverse[:3, 3]
    moved = ndimage.affine_transform(image, to_index, offset, output_shape=SHAPE[::-1], order=1)
    return np.ascontiguousarray(moved.T)
