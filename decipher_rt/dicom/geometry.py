"""Where voxels lie in the patient: axis order, canonical axes, and the affine of a stack of slices.

Patient coordinates are DICOM's LPS in millimetres (PS3.3 C.7.6.2.1.1). Array axes are (d, h, w) = (slice, row, column).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import SeriesError

# Rows are the directions Superior, Anterior and Right in LPS coordinates: the grid's axes.
SAR_IN_LPS = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
# Sums of cosines closer than this are a tie; ties are broken in the patient, never by storage order.
TIE_COSINE = 1e-6
# An axis whose cross-section volume (relative to the product of the spacings) is below this does not span space.
SINGULAR_DETERMINANT = 1e-3

FLIP_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class AxisOrder:
    """How to bring (d, h, w) to (S, A, R): transpose by ``permutation``, then reverse each axis whose flip is set."""

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, voxels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a view of ``voxels`` (D, H, W) whose axes run to S, A and R."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return voxels.transpose(self.permutation)[steps]


@dataclass(frozen=True)
class CanonicalRAS:
    """A volume's frame once its axes run as closely as possible to R, A and S, as NIfTI tools show it.

    ``permutation`` and ``flips`` bring (d, h, w) to (R, A, S); ``affine_ras_mm`` maps the new index to RAS mm.
    """

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    affine_ras_mm: NDArray[np.float64]
    shape_ras: tuple[int, int, int]


def axis_order(affine_lps_mm: NDArray[np.float64]) -> AxisOrder:
    """Find the permutation and flips after which the array axes run to S, A and R.

    The assignment is the one-to-one one with the largest sum of cosines between the axes of the nearest orthonormal
    frame (SVD) and S, A, R. It depends on where the axes lie in the patient alone: the same volume stored in another
    axis order or direction gives the same result, also at exactly 45 degrees.

    Parameters
    ----------
    affine_lps_mm : ndarray, shape (4, 4)
        Maps (d, h, w, 1) to LPS millimetres.

    Returns
    -------
    AxisOrder

    Raises
    ------
    SeriesError
        Where the affine is not finite or its axes do not span space.
    """
    frame = _nearest_orthonormal(np.asarray(affine_lps_mm, dtype=np.float64))
    cosines = SAR_IN_LPS @ frame  # row: S, A, R; column: d, h, w
    candidates = []
    for permutation in permutations((0, 1, 2)):
        oriented = cosines[:, permutation].copy()
        flips = oriented.diagonal() < 0
        oriented[:, flips] *= -1
        # The columns are now the candidate's axes seen from the patient, whatever order they are stored in.
        key = np.round(np.array([np.trace(oriented), *oriented.T.ravel()]) / TIE_COSINE)
        candidates.append((tuple(key), permutation, tuple(flips.tolist())))
    _, (first, second, third), (flip_first, flip_second, flip_third) = max(candidates)
    return AxisOrder((first, second, third), (flip_first, flip_second, flip_third))


def canonical_ras(affine_lps_mm: NDArray[np.float64], shape: tuple[int, ...]) -> CanonicalRAS:
    """Return the closest RAS frame of a volume of ``shape`` (D, H, W).

    Raises
    ------
    SeriesError
        As `axis_order`.
    """
    order = axis_order(affine_lps_mm)
    permutation = order.permutation[::-1]
    flips = order.flips[::-1]
    to_array = np.zeros((4, 4))
    to_array[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(permutation, flips, strict=True)):
        to_array[old, new] = -1.0 if flip else 1.0
        to_array[old, 3] = shape[old] - 1 if flip else 0.0
    d, h, w = (int(shape[axis]) for axis in permutation)
    return CanonicalRAS(permutation, flips, FLIP_RAS_LPS @ affine_lps_mm @ to_array, (d, h, w))


def _nearest_orthonormal(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not (spacing > 0).all():
        raise SeriesError("the affine is not finite or has an axis of no length: the orientation cannot be told")
    axes = axes / spacing
    if abs(np.linalg.det(axes)) < SINGULAR_DETERMINANT:
        raise SeriesError("the axes of the affine lie in one plane: the orientation cannot be told")
    left, _, right = np.linalg.svd(axes)
    return left @ right  # type: ignore[no-any-return]
