"""A series that arrives slice by slice: what can be done for one slice is done when it comes."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import SeriesError
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor, SliceResampler, plan
from decipher_rt.preprocess.grid import VOXEL_TYPES, lay_grid
from decipher_rt.preprocess.slices import after_in_plane
from decipher_rt.result import Result
from decipher_rt.volume import Histogram, SeriesInfo, Volume

# How far a slice may lie from its place: along the stack in slice spacings (as the reader has it), sideways in mm.
SPACING_TOLERANCE = 0.03
SIDEWAYS_TOLERANCE_MM = 0.01


class SeriesStream:
    """Slices in, in any order; one result out. Made by ``Session.stream``.

    Attributes
    ----------
    arrival_ms : float
        What all `push` together took.

    Notes
    -----
    One thread at a time, the session's. Several streams of a session may be open.
    """

    def __init__(
        self,
        volume: Volume,
        spec: Preprocessing,
        preprocessor: Preprocessor,
        slices: SliceResampler,
        answer: Callable[[Volume, Callable[[], Grid]], Result],
    ) -> None:
        self.arrival_ms = 0.0
        self._volume, self._spec = volume, spec
        self._preprocessor, self._slices, self._answer = preprocessor, slices, answer
        self._plan = lay_grid(volume.affine_lps_mm, volume.voxels.shape, spec, (0.0, 0.0))
        self._planes = np.empty((volume.voxels.shape[0], *self._plan.size[1:]), np.float32)
        self._arrived = np.zeros(volume.voxels.shape[0], bool)
        info = np.iinfo(volume.voxels.dtype) if volume.voxels.dtype.kind in "iu" else None
        self._first = info.min if info else 0
        self._counts = np.zeros(info.max - info.min + 1, np.int64) if info else None

    def push(self, pixels: NDArray[Any], position_lps_mm: NDArray[np.float64]) -> None:
        """Take a slice: find its place, count its values, resample it in plane.

        Parameters
        ----------
        pixels : ndarray, shape (H, W)
            Of the series' type.
        position_lps_mm : ndarray, shape (3,)
            Centre of the first pixel: Image Position (Patient) (0020,0032).

        Raises
        ------
        SeriesError
            Where the slice is none of the series' or has come before. The stream goes on.
        """
        start = time.perf_counter()
        index, voxels = self._index(position_lps_mm), self._volume.voxels
        if pixels.shape != voxels.shape[1:] or pixels.dtype != voxels.dtype:
            raise SeriesError(
                f"slice {index} is {pixels.dtype} {pixels.shape}, expected {voxels.dtype} {voxels.shape[1:]}"
            )
        if self._arrived[index]:
            raise SeriesError(f"the slice at {_place(position_lps_mm)} (number {index}) has already come")
        if self._counts is None and not np.isfinite(pixels).all():
            raise SeriesError(f"slice {index} holds values that are not finite: write the background value instead")
        voxels[index] = pixels
        self._slices(voxels[index], self._plan, self._planes[index])
        if self._counts is not None:
            values = voxels[index].ravel()
            if self._first:
                values = values.astype(np.int32) - self._first
            self._counts += np.bincount(values, minlength=len(self._counts))
        self._arrived[index] = True
        self.arrival_ms += (time.perf_counter() - start) * 1e3

    def missing(self) -> tuple[int, ...]:
        """Return the indices, along the first axis, of the slices that have not come."""
        return tuple(np.flatnonzero(~self._arrived).tolist())

    def finish(self) -> Result:
        """Do what had to wait for the last slice, encode, and ask the heads.

        Raises
        ------
        SeriesError
            Where slices are missing (they may still come), or as ``Session.infer_volume``.
        """
        missing = self.missing()
        if missing:
            affine = self._volume.affine_lps_mm
            raise SeriesError(
                f"{len(missing)} of {len(self._arrived)} slices have not come, the first of them at "
                f"{_place(affine[:3, 3] + missing[0] * affine[:3, 0])}"
            )
        histogram = None if self._counts is None else Histogram(self._first, self._counts)
        volume = replace(self._volume, histogram=histogram)
        return self._answer(volume, lambda: self._grid(volume))

    def _grid(self, volume: Volume) -> Grid:
        return self._preprocessor.resample(self._planes, after_in_plane(plan(volume, self._spec)))

    def _index(self, position_lps_mm: NDArray[np.float64]) -> int:
        position = _numbers(position_lps_mm, (3,), "the slice's position")
        step, offset = self._volume.affine_lps_mm[:3, 0], position - self._volume.affine_lps_mm[:3, 3]
        place = float(offset @ step / (step @ step))
        sideways = float(np.linalg.norm(offset - place * step))
        # Written so that NaN is refused too.
        on_a_slice = abs(place - np.rint(place)) <= SPACING_TOLERANCE
        if not (on_a_slice and sideways <= SIDEWAYS_TOLERANCE_MM + SPACING_TOLERANCE * float(np.linalg.norm(step))):
            raise SeriesError(
                f"the slice at {_place(position)} lies on none of the series' slices: check the affine and Image "
                "Position (Patient)"
            )
        if not 0 <= round(place) < len(self._arrived):
            raise SeriesError(
                f"the slice at {_place(position)} lies outside the {len(self._arrived)} slices that were announced"
            )
        return round(place)


def blank_volume(
    shape: tuple[int, int, int],
    dtype: Any,
    affine_lps_mm: NDArray[np.float64],
    series: SeriesInfo,
    slope: float,
    intercept: float,
) -> Volume:
    """Return a volume whose voxels are still to come.

    Raises
    ------
    SeriesError
        Where shape, type, affine or rescaling are not those of a volume.
    """
    affine = _numbers(affine_lps_mm, (4, 4), "the affine")
    try:
        lengths, stored = tuple(operator.index(n) for n in shape), np.dtype(dtype)
    except TypeError as error:
        raise SeriesError(f"a series of shape {shape} and type {dtype}: {error}") from None
    if len(lengths) != 3 or min(lengths) < 1 or stored.name not in VOXEL_TYPES or not stored.isnative:
        raise SeriesError(
            f"a series of shape {lengths} and type {stored.str}: expected slices, rows and columns of "
            f"{', '.join(VOXEL_TYPES)} in this machine's byte order"
        )
    if not (np.isfinite([slope, intercept]).all() and slope > 0):
        raise SeriesError(
            f"slope {slope:g} and intercept {intercept:g}: expected finite ones, the slope above 0; apply another "
            "slope to the pixels and push them as float32"
        )
    try:
        voxels = np.zeros(lengths, stored)
    except (MemoryError, ValueError) as error:
        raise SeriesError(f"a series of shape {lengths} does not fit into memory ({error})") from None
    return Volume(voxels, affine, series, slope, intercept)


def _numbers(values: Any, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
    """Return an array of this shape, or raise SeriesError."""
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise SeriesError(f"{what} is no array of numbers: {error}") from None
    if numbers.shape != shape:
        raise SeriesError(f"{what} has the shape {numbers.shape}, expected {shape}")
    return numbers


def _place(position: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{value:.2f}' for value in position)}) mm"
