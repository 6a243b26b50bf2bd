"""From frames to voxels: read each plane to its place, correct it, and count its values while it is in the cache."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.decode import NATIVE_CODE, decode_planes
from decipher_rt.dicom.image import Frame, PixelFormat
from decipher_rt.errors import SeriesError
from decipher_rt.volume import Histogram


class ValueCounter:
    """Counts integer values plane by plane; the histogram spans from the smallest to the largest value seen."""

    def __init__(self) -> None:
        self.first = 0
        self.counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, first: int, counts: NDArray[np.int64]) -> None:
        """Add ``counts[i]`` occurrences of the value ``first + i``."""
        if not len(self.counts):
            self.first, self.counts = first, counts.copy()
            return
        low = min(self.first, first)
        high = max(self.first + len(self.counts), first + len(counts))
        if low < self.first or high > self.first + len(self.counts):
            grown = np.zeros(high - low, dtype=np.int64)
            grown[self.first - low : self.first - low + len(self.counts)] = self.counts
            self.first, self.counts = low, grown
        self.counts[first - self.first : first - self.first + len(counts)] += counts

    def histogram(self) -> Histogram:
        """Return the histogram without empty ends."""
        used = np.flatnonzero(self.counts)
        low, high = int(used[0]), int(used[-1])
        return Histogram(self.first + low, self.counts[low : high + 1].copy())


def count_values(plane: NDArray[Any]) -> tuple[int, NDArray[np.int64]]:
    """Count the values of an integer array; return the smallest counted value and the counts."""
    flat = plane.reshape(-1)
    low = int(flat.min()) if flat.dtype.kind == "i" else 0
    if low >= 0:
        return 0, np.bincount(flat)
    return low, np.bincount(flat.astype(np.intp) - low)


def stored_dtype(pixels: PixelFormat) -> np.dtype[Any]:
    """Return the little endian type of the pixels in the file."""
    letter = "f" if pixels.floating else "i" if pixels.signed else "u"
    return np.dtype(f"<{letter}{pixels.bits_allocated // 8}")


def voxel_dtype(frames: Sequence[Frame]) -> np.dtype[Any]:
    """Return the type of the volume's voxels: stored integers where one positive slope holds and 16 bits suffice."""
    pixels = frames[0].pixels
    rescales = {(frame.slope, frame.intercept) for frame in frames}
    if pixels.floating or pixels.bits_allocated > 16 or len(rescales) > 1 or frames[0].slope < 0:
        return np.dtype(np.float32)
    if pixels.bits_allocated == 8:
        return np.dtype(np.int16 if pixels.signed else np.uint8)
    return np.dtype(np.int16 if pixels.signed else np.uint16)


def plane_digests(frames: Iterable[Frame]) -> Callable[[Frame], bytes]:
    """Return a function that gives the SHA-256 of a frame's stored values, unused bits corrected.

    It knows ``frames``, and reads a file once, with all of them that are in it, when it is first asked of one.
    """
    members: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames:
        members[id(frame.source)].append(frame)
    known: dict[int, bytes] = {}

    def digest_of(frame: Frame) -> bytes:
        if id(frame) not in known:
            plane = np.empty((1, *frame.shape), dtype=stored_dtype(frame.pixels))
            for _, one, values in _raw_planes(members[id(frame.source)], plane):
                _correct_unused_bits(values, one.pixels)
                known[id(one)] = hashlib.sha256(values.data).digest()
        return known[id(frame)]

    return digest_of


def read_voxels(frames: Sequence[Frame | None]) -> tuple[NDArray[Any], Histogram | None]:
    """Read a volume, slice by slice.

    Parameters
    ----------
    frames : sequence of Frame or None
        One for each slice in order; None leaves the slice empty, filled with the smallest value of the others.

    Returns
    -------
    voxels : ndarray, shape (D, H, W)
        As `voxel_dtype` says: stored integers, or rescaled float32.
    histogram : Histogram or None
        Of integer voxels.

    Raises
    ------
    SeriesError
        Where pixels are absent, cut off or damaged; the message names the file.
    """
    present = [frame for frame in frames if frame is not None]
    dtype = voxel_dtype(present)
    first = present[0]
    stored = stored_dtype(first.pixels)
    rescaled = dtype.kind == "f"
    try:
        voxels = np.empty((len(frames), *first.shape), dtype=dtype)
        raw = voxels if stored == dtype and not rescaled else np.empty((1, *first.shape), dtype=stored)
    except MemoryError:
        raise SeriesError(f"{first.source.name}: {len(frames)} x {first.shape} voxels do not fit in memory") from None
    counter = None if rescaled else ValueCounter()
    for index, frame, plane in _raw_planes(frames, raw):
        voxel_plane = voxels[index]
        if counter is not None:
            _store_integers(plane, voxel_plane, frame.pixels, counter)
        else:
            _store_rescaled(plane, voxel_plane, frame)
    empty = [index for index, frame in enumerate(frames) if frame is None]
    histogram = None
    if counter is not None:
        histogram = counter.histogram()
        if empty:
            voxels[empty] = histogram.first
            histogram.counts[0] += voxels[empty].size
    elif empty:
        voxels[empty] = min(float(voxels[index].min()) for index, frame in enumerate(frames) if frame is not None)
    return voxels, histogram


def _raw_planes(frames: Sequence[Frame | None], raw: NDArray[Any]) -> Iterator[tuple[int, Frame, NDArray[Any]]]:
    """Bring stored values into ``raw`` (D, H, W), or one after the other into a single plane (1, H, W) of it."""
    encoded: dict[int, list[int]] = defaultdict(list)
    mosaic: tuple[object, int, NDArray[Any]] | None = None
    for index, frame in enumerate(frames):
        if frame is None:
            continue
        if frame.offset is None:
            encoded[id(frame.source)].append(index)
            continue
        plane = raw[index % len(raw)]
        if frame.tile is None:
            _read_native(frame, plane, frame.offset)
        else:
            if mosaic is None or mosaic[:2] != (frame.source, frame.index):
                image = np.empty((frame.pixels.rows, frame.pixels.columns), dtype=raw.dtype)
                _read_native(frame, image, frame.offset)
                mosaic = (frame.source, frame.index, image)
            plane[:] = _tile(mosaic[2], frame)
        yield index, frame, plane
    for members in encoded.values():
        yield from _decoded_planes([(index, frames[index]) for index in members], raw)


def _decoded_planes(
    members: Sequence[tuple[int, Frame | None]], raw: NDArray[Any]
) -> Iterator[tuple[int, Frame, NDArray[Any]]]:
    wanted: dict[int, list[tuple[int, Frame]]] = defaultdict(list)
    for index, frame in members:
        if frame is not None:
            wanted[frame.index].append((index, frame))
    first = next(iter(wanted.values()))[0][1]
    images = sorted(wanted)
    decode = decode_planes
    if first.pixels.transfer_syntax in NATIVE_CODE:
        from decipher_rt.dicom.decode_process import decode_planes_apart as decode
    for number, image in zip(images, decode(first.source, first.pixels, images), strict=True):
        for index, frame in wanted[number]:
            plane = raw[index % len(raw)]
            plane[:] = _tile(image, frame)
            yield index, frame, plane


def _tile(image: NDArray[Any], frame: Frame) -> NDArray[Any]:
    if frame.tile is None:
        return image
    row, column, rows, columns = frame.tile
    return image[row : row + rows, column : column + columns]


def _read_native(frame: Frame, plane: NDArray[Any], offset: int) -> None:
    target = plane.reshape(-1).view(np.uint8).data
    try:
        count = frame.source.read_into(target, offset)
    except OSError as error:
        raise SeriesError(f"{frame.source.name}: {error.strerror or error}") from None
    if count < len(target):
        raise SeriesError(f"{frame.source.name}: is cut off: its pixel data has {count} of {len(target)} bytes")


def _store_integers(plane: NDArray[Any], target: NDArray[Any], pixels: PixelFormat, counter: ValueCounter) -> None:
    """Bring a plane of stored integers into the volume and count it. ``plane`` may be ``target`` itself."""
    low, high = _value_range(pixels)
    first, counts = count_values(plane)
    if first < low or first + len(counts) - 1 > high:
        _correct_unused_bits(plane, pixels)
        first, counts = count_values(plane)
    if pixels.photometric == "MONOCHROME1":
        np.subtract(low + high, plane, out=plane, dtype=plane.dtype, casting="unsafe")
        first, counts = low + high - (first + len(counts) - 1), counts[::-1]
    if target is not plane:
        target[:] = plane
    counter.add(first, counts)


def _store_rescaled(plane: NDArray[Any], target: NDArray[Any], frame: Frame) -> None:
    _correct_unused_bits(plane, frame.pixels)
    values = plane.astype(np.float64)
    if frame.pixels.photometric == "MONOCHROME1":
        low, high = (0, 0) if frame.pixels.floating else _value_range(frame.pixels)
        np.subtract(low + high, values, out=values)
    values *= frame.slope
    values += frame.intercept
    with np.errstate(over="ignore", invalid="ignore"):
        target[:] = values
    if not np.isfinite(target).all():
        raise SeriesError(f"{frame.source.name}: holds pixel values that are not finite numbers")


def _value_range(pixels: PixelFormat) -> tuple[int, int]:
    """Return the smallest and largest value that the stored bits can hold."""
    if pixels.signed:
        return -(1 << (pixels.bits_stored - 1)), (1 << (pixels.bits_stored - 1)) - 1
    return 0, (1 << pixels.bits_stored) - 1


def _correct_unused_bits(plane: NDArray[Any], pixels: PixelFormat) -> None:
    """Drop what lies above the stored bits and extend the sign, in place (PS3.5 section 8.1.1)."""
    unused = pixels.bits_allocated - pixels.bits_stored
    if unused and not pixels.floating:
        np.left_shift(plane, unused, out=plane)
        np.right_shift(plane, unused, out=plane)
