"""Where the grid lies in the volume: a pure function from affine, shape and spec to the arguments of the DALI graph.

Positions along an acquired axis of n voxels are given from edge to edge: 0 is the outer edge of the first voxel, n that
of the last, i + 0.5 the centre of voxel i. The field of view of the acquisition is the box [0, n] of all three axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.dicom.geometry import axis_order
from decipher_rt.errors import SeriesError
from decipher_rt.manifest import SPACING_RANGE_MM, Preprocessing
from decipher_rt.volume import Volume

Triple = tuple[int, int, int]
Positions = tuple[float, float, float]

# The case number that the graph branches on is the place of the permutation in this list.
PERMUTATIONS: tuple[Triple, ...] = tuple(permutations((0, 1, 2)))  # type: ignore[arg-type]
# What the graph takes (fn.resize's types); everything else must have become float32 in the reader.
VOXEL_TYPES = ("uint8", "int16", "uint16", "float32")
# An odd number of 1 mm slices on a 2 mm grid is a tie; noise of the affine must not decide it. In grid voxels.
TIE_VOXELS = 1e-3
# Between the two percentiles, in stored units: the encoder divides by no less.
NARROWEST_WINDOW = 1e-6
# How large a voxel of the grid can be, in acquired ones, and how small, as part of the axis. DALI 2.4 divides by zero
# where one is as large as 2**31, and takes positions as float32: two of them must not be one.
LARGEST_STEP = 1e4
LEAST_PART = 1e-6


@dataclass(frozen=True)
class VolumeOnDevice:
    """A grid's voxels where DALI left them on the GPU, valid until the preprocessor's next volume.

    Attributes
    ----------
    array : DeviceArray, shape (1, 1, D, H, W), float32
    to_host : callable
        Copies them, as (D, H, W); an EngineError once they are gone.
    """

    array: DeviceArray
    to_host: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class Grid:
    """A volume on the encoder's grid.

    Attributes
    ----------
    voxels : ndarray, shape (D, H, W), float32, or VolumeOnDevice
        Axes run to S, A, R. Values are the volume's stored values, interpolated; outside the field of view they are
        ``window[0]``. Use ``volume`` or ``device``.
    window : ndarray, shape (2,), float32
        The two percentiles of the spec, of all voxels of the volume, in the same units.
    affine_lps_mm : ndarray, shape (4, 4), float64
        Maps grid index (d, h, w, 1) to DICOM patient coordinates (LPS) in mm.
    """

    voxels: NDArray[np.float32] | VolumeOnDevice
    window: NDArray[np.float32]
    affine_lps_mm: NDArray[np.float64]

    @cached_property
    def volume(self) -> NDArray[np.float32]:
        """The voxels on the host; from a GPU they are copied when they are first asked for."""
        return self.voxels.to_host() if isinstance(self.voxels, VolumeOnDevice) else self.voxels

    @property
    def device(self) -> DeviceArray | None:
        """The voxels on the GPU, (1, 1, D, H, W); None where DALI ran on the CPU."""
        return self.voxels.array if isinstance(self.voxels, VolumeOnDevice) else None


@dataclass(frozen=True)
class GridPlan:
    """Everything that the graph must be told of one volume.

    The grid is cut from the volume with exact spacing; where the field of view is smaller than the grid, it lies in the
    middle of it (rounded down to a whole voxel) and the rest is padding.

    Attributes
    ----------
    size : resampled voxels along each acquired axis, at most the grid's
    start, end : the stretch of each acquired axis, edge to edge, that becomes these voxels; start > end flips the axis.
        It reaches beyond the field of view by less than half a grid voxel a side, or so that a volume thinner than a
        grid voxel fills one; there the border voxel is repeated
    permutation : grid axis i is the acquired axis ``permutation[i]``
    padding : grid voxels before the first resampled one, along each grid axis
    window : the two percentiles; the lower one is the value of padding
    affine_lps_mm : of the grid
    """

    size: Triple
    start: Positions
    end: Positions
    permutation: Triple
    padding: Triple
    window: tuple[float, float]
    affine_lps_mm: NDArray[np.float64]

    @property
    def case(self) -> int:
        """Which of the graph's six branches permutes the axes."""
        return PERMUTATIONS.index(self.permutation)


def plan(volume: Volume, spec: Preprocessing) -> GridPlan:
    """Lay the grid of ``spec`` over ``volume``, centred on its field of view.

    Raises
    ------
    SeriesError
        Where the volume has no voxels, no contrast or hardly any, values that are not finite, or an affine that is no
        geometry.
    """
    _check_voxels(volume.voxels)
    if not (np.isfinite([volume.slope, volume.intercept]).all() and volume.slope > 0):
        raise SeriesError(
            f"slope {volume.slope:g} and intercept {volume.intercept:g}: expected finite ones, the slope above 0; "
            "apply another slope to the voxels, as float32"
        )
    window = volume.percentiles(spec.window_percentiles)
    if not window[0] < window[1]:
        low, high = spec.window_percentiles
        raise SeriesError(
            f"the volume has no contrast: its {low:g} and {high:g} percentiles are both {window[0]:g}; "
            "give an image series, not a mask or an empty one"
        )
    if window[1] - window[0] < NARROWEST_WINDOW:
        raise SeriesError(
            f"the volume's values span {window[1] - window[0]:.3g}, less than {NARROWEST_WINDOW:g}: give them in a "
            "smaller unit (an ADC map in um2/s instead of m2/s), not by their slope"
        )
    return lay_grid(volume.affine_lps_mm, volume.voxels.shape, spec, window)


def lay_grid(
    affine_lps_mm: NDArray[np.float64], shape: tuple[int, ...], spec: Preprocessing, window: tuple[float, float]
) -> GridPlan:
    """Lay the grid of ``spec`` over a field of view of ``shape`` (D, H, W), whatever the voxels in it will be.

    Raises
    ------
    SeriesError
        Where the affine is no geometry, or its voxels are of no size that an image has, or of one far from the grid's.
    """
    affine = np.asarray(affine_lps_mm, dtype=np.float64)
    if affine.shape != (4, 4) or affine[3].tolist() != [0, 0, 0, 1]:
        raise SeriesError(
            "the affine must be 4 x 4 and its last row 0 0 0 1: it maps columns (d, h, w, 1) to LPS mm; is it "
            "transposed?"
        )
    order = axis_order(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    least, most = SPACING_RANGE_MM
    if not (least <= spacing.min() and spacing.max() <= most):
        raise SeriesError(
            f"voxels of {' x '.join(f'{x:g}' for x in spacing)} mm: expected {least:g} to {most:g} mm along each axis; "
            "is the affine in millimetres?"
        )
    size, start, end, padding = [0, 0, 0], [0.0] * 3, [0.0] * 3, [0, 0, 0]
    index_of_grid = np.zeros((4, 4))  # grid index to acquired index
    index_of_grid[3, 3] = 1.0
    for axis, acquired in enumerate(order.permutation):
        step = spec.spacing_mm[axis] / float(np.linalg.norm(affine[:3, acquired]))  # one grid voxel in acquired voxels
        if not LEAST_PART * shape[acquired] <= step <= LARGEST_STEP:
            raise SeriesError(
                f"{shape[acquired]} voxels of {spacing[acquired]:g} mm and a grid of {spec.spacing_mm[axis]:g} mm: too "
                "far apart to be resampled; is the affine in millimetres?"
            )
        fitting = math.floor(shape[acquired] / step + 0.5 + TIE_VOXELS)
        count = min(spec.grid_shape[axis], max(1, fitting))
        first, last = shape[acquired] / 2 - count * step / 2, shape[acquired] / 2 + count * step / 2
        if order.flips[axis]:
            first, last, step = last, first, -step
        size[acquired], start[acquired], end[acquired] = count, first, last
        padding[axis] = (spec.grid_shape[axis] - count) // 2
        index_of_grid[acquired, axis] = step
        index_of_grid[acquired, 3] = first + (0.5 - padding[axis]) * step - 0.5
    return GridPlan(
        size=(size[0], size[1], size[2]),
        start=(start[0], start[1], start[2]),
        end=(end[0], end[1], end[2]),
        permutation=order.permutation,
        padding=(padding[0], padding[1], padding[2]),
        window=window,
        affine_lps_mm=affine @ index_of_grid,
    )


def graph_inputs(plan: GridPlan, grid_shape: Triple, slabs: int) -> dict[str, NDArray[Any]]:
    """Return the graph's arguments for a grid cut into ``slabs`` along its first axis, one slab a sample.

    DALI resizes one sample on one thread, so that the slabs are what runs in parallel; they also fit the cache better.

    Parameters
    ----------
    plan : GridPlan
    grid_shape : (D, H, W) of the grid; ``slabs`` divides D
    slabs : int

    Returns
    -------
    dict of name to array whose first axis is the slab
        ``size``, ``roi_start``, ``roi_end`` (slabs, 3) float32; ``anchor``, ``shape`` (slabs, 3) int32;
        ``permutation`` (slabs,) int32; ``low`` (slabs,) float32.
    """
    depth = grid_shape[0] // slabs
    split = plan.permutation[0]  # the acquired axis that the slabs divide
    before, count = plan.padding[0], plan.size[split]
    begin = depth * np.arange(slabs) - before  # of each slab, in resampled voxels
    # A slab of nothing but padding still resizes one voxel: DALI takes a size of 0 for "not given".
    first = np.clip(begin, 0, count - 1)
    last = np.clip(begin + depth, first + 1, count)
    step = (plan.end[split] - plan.start[split]) / count
    size, start, end = (np.tile(np.asarray(x, np.float64), (slabs, 1)) for x in (plan.size, plan.start, plan.end))
    size[:, split] = last - first
    start[:, split] = plan.start[split] + first * step
    end[:, split] = plan.start[split] + last * step
    anchor = np.tile(-np.asarray(plan.padding, np.int32), (slabs, 1))
    anchor[:, 0] = begin - first
    return {
        "size": size.astype(np.float32),
        "roi_start": start.astype(np.float32),
        "roi_end": end.astype(np.float32),
        "permutation": np.full(slabs, plan.case, np.int32),
        "anchor": anchor,
        "shape": np.tile(np.asarray((depth, *grid_shape[1:]), np.int32), (slabs, 1)),
        "low": np.full(slabs, plan.window[0], np.float32),
    }


def _check_voxels(voxels: NDArray[Any]) -> None:
    if voxels.ndim != 3 or voxels.size == 0:
        raise SeriesError(f"the volume has shape {voxels.shape}: expected slices, rows and columns, at least one each")
    if voxels.dtype.name not in VOXEL_TYPES or not voxels.dtype.isnative:
        raise SeriesError(f"voxels of type {voxels.dtype.str}: convert them to one of {', '.join(VOXEL_TYPES)}")
    # Minimum and maximum carry NaN and infinity through, without a copy of the volume.
    if voxels.dtype.kind == "f" and not (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise SeriesError(
            f"{bad} of {voxels.size} voxels are not finite (NaN or infinity): write the background value in their place"
        )
