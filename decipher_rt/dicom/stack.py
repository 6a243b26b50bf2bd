"""A stack of slices: their order along the normal, whether they are one volume beyond doubt, and the affine.

Patient coordinates are DICOM's LPS in millimetres (PS3.3 C.7.6.2.1.1). Array axes are (d, h, w) = (slice, row, column).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.geometry import SINGULAR_DETERMINANT
from decipher_rt.errors import SeriesError

# Direction cosines that differ by more than this (about 1 degree) belong to another stack, as in a localiser.
STACK_TOLERANCE = 0.02
# Within a stack they may differ by this: 0.06 mm at the edge of a 250 mm field of view.
ORIENTATION_TOLERANCE = 5e-4
# Row and column direction must be perpendicular unit vectors this well (cosine, length).
ORTHONORMAL_TOLERANCE = 1e-3
# Pixel spacing may differ between the slices of a stack by this share.
PIXEL_SPACING_TOLERANCE = 1e-3
# Two images lie at the same place when their positions differ by no more than this.
SAME_POSITION_MM = 0.01
# A slice may lie this share of the slice spacing beside its place on the straight line from first to last.
SLICE_POSITION_TOLERANCE = 0.03
# ... or this, whichever is greater: positions are often written with two decimals.
SLICE_POSITION_MM = 0.01
# The step from slice to slice may leave the normal by this angle (tangent); a gantry tilt is beyond.
TILT_TOLERANCE = 0.01
# Spacing Between Slices may differ from the distance of the slices by this share before it is reported.
STATED_SPACING_TOLERANCE = 0.02
# Slices closer than this part of the stated spacing, and not equally far from each other, are those of several volumes.
MIXED_SPACING = 0.45
# More slices than this are not one volume: a hostile or broken position would ask for endless empty slices.
MAX_SLICES = 8192


@dataclass(frozen=True)
class Stack:
    """Slices in order along their normal.

    Attributes
    ----------
    order : ndarray, shape (D,), int
        Which of the given images is slice d; -1 where a slice is missing.
    affine_lps_mm : ndarray, shape (4, 4)
    warnings : tuple of str
    """

    order: NDArray[np.intp]
    affine_lps_mm: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


def stack_normal(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit normal, row direction x column direction, of Image Orientation (Patient), shape (6,)."""
    normal = np.cross(orientation[:3], orientation[3:])
    length = float(np.linalg.norm(normal))
    if length < SINGULAR_DETERMINANT:
        raise SeriesError(f"Image Orientation (Patient) {_listed(orientation)} spans no plane")
    return normal / length


def stack_slices(
    positions: NDArray[np.float64],
    orientations: NDArray[np.float64],
    spacings: NDArray[np.float64],
    stated_spacing: float | None = None,
    allow_gaps: bool = False,
    thickness: float | None = None,
) -> Stack:
    """Order the images of one stack along the normal, check that they are equally spaced, and build the affine.

    Parameters
    ----------
    positions : ndarray, shape (N, 3)
        Image Position (Patient), LPS mm.
    orientations : ndarray, shape (N, 6)
        Image Orientation (Patient).
    spacings : ndarray, shape (N, 2)
        Pixel Spacing: between rows, between columns, mm.
    stated_spacing : float or None
        Spacing Between Slices in mm, a check; where there is one slice only, its spacing (Slice Thickness will do).
    allow_gaps : bool
        Leave places of missing slices empty instead of refusing.
    thickness : float or None
        Slice Thickness in mm: some write the gap between slices as their spacing.

    Raises
    ------
    SeriesError
        Missing slices (with the position), slices that are not equally spaced, tilted, or of varying orientation or
        pixel spacing.
    """
    row, column = _directions(orientations)
    _check_pixel_spacing(spacings, positions)
    normal = np.cross(row, column)
    order = np.argsort(positions @ normal, kind="stable")
    ordered = positions[order]
    step, slots, warnings = _step(ordered, normal, stated_spacing, allow_gaps, thickness)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column * spacings[0, 0]
    affine[:3, 2] = row * spacings[0, 1]
    affine[:3, 3] = ordered[0]
    placed = np.full(int(slots[-1]) + 1, -1, dtype=np.intp)
    placed[slots] = order
    return Stack(placed, affine, tuple(warnings))


def _directions(orientations: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    spread = float(np.ptp(orientations, axis=0).max())
    if spread > ORIENTATION_TOLERANCE:
        raise SeriesError(
            f"the orientation varies between slices: direction cosines differ by {spread:.2g}, "
            f"at most {ORIENTATION_TOLERANCE:g} is one volume"
        )
    row, column = orientations[0, :3], orientations[0, 3:]
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs([*(lengths - 1.0), row @ column]).max() > ORTHONORMAL_TOLERANCE:
        raise SeriesError(
            f"Image Orientation (Patient) {_listed(orientations[0])} is not a pair of perpendicular unit vectors"
        )
    row = row / lengths[0]
    column = column - row * (row @ column)
    return row, column / np.linalg.norm(column)


def _check_pixel_spacing(spacings: NDArray[np.float64], positions: NDArray[np.float64]) -> None:
    deviation = np.abs(spacings / spacings[0] - 1.0).max(axis=1)
    worst = int(deviation.argmax())
    if deviation[worst] > PIXEL_SPACING_TOLERANCE:
        raise SeriesError(
            f"the pixel spacing varies: {spacings[worst, 0]:g} x {spacings[worst, 1]:g} mm "
            f"at {place(positions[worst])}, {spacings[0, 0]:g} x {spacings[0, 1]:g} mm elsewhere"
        )


def _step(
    ordered: NDArray[np.float64],
    normal: NDArray[np.float64],
    stated: float | None,
    allow_gaps: bool,
    thickness: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.intp], list[str]]:
    """Return the vector from slice to slice, the slot of each image, and what is odd about them."""
    stated = stated if stated is not None and np.isfinite(stated) and stated > 0 else None
    if len(ordered) == 1:
        if stated is None:
            raise SeriesError(
                f"one slice only, at {place(ordered[0])}, with neither Spacing Between Slices nor Slice Thickness"
            )
        alone = "one slice only: if its series has more, give them together, as their folder"
        return normal * stated, np.zeros(1, dtype=np.intp), [alone]
    locations = ordered @ normal
    steps = np.diff(locations)
    spacing = float(np.median(steps))
    if spacing <= SAME_POSITION_MM:
        raise SeriesError(f"several images at {place(ordered[int(steps.argmin())])} in one volume")
    if (
        stated is not None
        and spacing < MIXED_SPACING * stated
        and steps.max() > spacing * (1 + SLICE_POSITION_TOLERANCE)
    ):
        raise SeriesError(
            f"slices lie {spacing:.4g} mm apart where the header says {stated:.4g} mm, with gaps between: volumes that "
            "moved against one another seem to be in the series; export each as a series of its own"
        )
    slots, warnings = _slots(ordered, steps, spacing, allow_gaps)
    step = (ordered[-1] - ordered[0]) / slots[-1]
    in_plane = step - normal * (step @ normal)
    if np.linalg.norm(in_plane) > TILT_TOLERANCE * (step @ normal):
        raise SeriesError(
            "slices are not stacked along their normal (tilted or staggered): "
            f"from {place(ordered[0])} to {place(ordered[-1])}"
        )
    beside = np.linalg.norm(ordered - (ordered[0] + slots[:, None] * step), axis=1)
    worst = int(beside.argmax())
    if beside[worst] > max(SLICE_POSITION_TOLERANCE * spacing, SLICE_POSITION_MM):
        raise SeriesError(
            f"the slice spacing varies beyond {SLICE_POSITION_TOLERANCE:.0%}: the slice at {place(ordered[worst])} "
            f"lies {beside[worst]:.3g} mm beside its place (spacings from {steps.min():.4g} to {steps.max():.4g} mm)"
        )
    distance = float(np.linalg.norm(step))
    if stated is not None and abs(stated / distance - 1.0) > STATED_SPACING_TOLERANCE:
        warnings.append(
            _differs_from_stated(ordered, distance, stated, allow_gaps or _is_gap(stated, thickness, distance))
        )
    return step, slots, warnings


def _is_gap(stated: float, thickness: float | None, distance: float) -> bool:
    """Whether what is stated as the spacing of slices is what lies between them."""
    return (
        thickness is not None
        and stated < thickness * (1 - STATED_SPACING_TOLERANCE)
        and abs((thickness + stated) / distance - 1.0) <= STATED_SPACING_TOLERANCE
    )


def _differs_from_stated(ordered: NDArray[np.float64], distance: float, stated: float, allow_gaps: bool) -> str:
    """Refuse regular gaps (every other slice missing, say), which look like thick slices; else word a warning."""
    multiple = round(distance / stated)
    if multiple >= 2 and abs(distance / stated / multiple - 1.0) <= STATED_SPACING_TOLERANCE and not allow_gaps:
        raise SeriesError(
            f"slices lie {distance:.4g} mm apart, {multiple} times the {stated:.4g} mm of the header: slices seem to "
            f"be missing after {place(ordered[0])} (--allow-gaps reads them as they are)"
        )
    return f"slices lie {distance:.4g} mm apart, the header says {stated:.4g} mm"


def _slots(
    ordered: NDArray[np.float64], steps: NDArray[np.float64], spacing: float, allow_gaps: bool
) -> tuple[NDArray[np.intp], list[str]]:
    """Count each image's place in units of the usual spacing; more than one step on means that slices are missing."""
    whole = np.maximum(np.round(steps / spacing), 1.0)
    missing = whole.sum() - len(steps)
    if not missing:
        return np.arange(len(ordered)), []
    # A step between one and two spacings is not a gap but an irregular spacing, which the caller names.
    gap = int((whole > 1).argmax())
    if np.abs(steps / whole / spacing - 1.0).max() > SLICE_POSITION_TOLERANCE:
        gap_mm = steps[gap]
        raise SeriesError(
            f"the slice spacing varies: {gap_mm:.4g} mm after {place(ordered[gap])}, {spacing:.4g} mm elsewhere"
        )
    first = ordered[gap] + (ordered[gap + 1] - ordered[gap]) / whole[gap]
    if not allow_gaps:
        raise SeriesError(
            f"{_count(missing)} missing, the first at {place(first)} (--allow-gaps fills in empty slices)"
        )
    if missing + len(ordered) > MAX_SLICES:
        raise SeriesError(f"{_count(missing)} missing, the first at {place(first)}; too many to fill in")
    slots = np.concatenate([[0], np.cumsum(whole)]).astype(np.intp)
    return slots, [f"{_count(missing)} missing and left empty, the first at {place(first)}"]


def place(position: NDArray[np.float64]) -> str:
    """Write a position for a message."""
    x, y, z = (f"{value + 0.0:.2f}" for value in position)
    return f"({x}, {y}, {z}) mm LPS"


def _count(slices: float) -> str:
    return "1 slice is" if slices == 1 else f"{int(slices)} slices are"


def _listed(values: NDArray[np.float64]) -> str:
    return "\\".join(f"{value:g}" for value in values)
