"""Read NIfTI-1 and -2 files (``.nii``, ``.nii.gz``) through nibabel."""

from __future__ import annotations

import gzip
import hashlib
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from decipher_rt.dicom.geometry import FLIP_RAS_LPS, axis_order
from decipher_rt.dicom.pixels import ValueCounter, count_values
from decipher_rt.dicom.source import MAX_ARCHIVE_RATIO, Source
from decipher_rt.errors import SeriesError, one_line
from decipher_rt.quiet import quiet
from decipher_rt.volume import SeriesInfo, Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Largest volume that is read, in bytes of the file; a header can claim 32767^7 voxels.
MAX_BYTES: Final = 16 << 30
INTENT_LABEL: Final = 1002  # what nibabel calls "label"
SMALL_BYTES: Final = 2 << 30  # a mask with hardly anything in it packs better than any image
# Types that fit the volume as they are stored; the rest is rescaled to float32. int8 widens.
KEPT: Final = {"uint8": "uint8", "int8": "int16", "int16": "int16", "uint16": "uint16"}
# Room for a NIfTI-2 header (540 bytes).
HEADER_BYTES: Final = 1024
REAL_KINDS: Final = "iuf"
# Metres and microns, by the low bits of xyzt_units; all else is taken for millimetres.
MM: Final = {1: 1e3, 3: 1e-3}
SPATIAL_UNITS: Final = 7


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file whose header was read: shape (i, j, k, volumes), affine in RAS mm as nibabel gives it."""

    source: Source
    description: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine_ras_mm: NDArray[np.float64]
    is_label_map: bool = False

    @cached_property
    def uid(self) -> str:
        """Name-based UUID of the file's bytes as ``2.25.<int>``; all of them are read, and SeriesError is raised."""
        with _readable(self.source), _opened(self.source) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, digest).int}"


def open_nifti(source: Source) -> NiftiFile:
    """Read the header of a NIfTI file and check that it describes a volume with a place in the patient.

    Raises
    ------
    SeriesError
        Not NIfTI, damaged, not three or four dimensions, not real numbers, or neither qform nor sform.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    head = _bytes(source, 0, HEADER_BYTES)
    image_class = nibabel.Nifti2Image if _is_nifti2(head) else nibabel.Nifti1Image
    # nibabel writes to the terminal what it finds odd in a header; here that is an error, or of no matter.
    try:
        with quiet("nibabel.global"), np.errstate(all="ignore"):
            kind = image_class.header_class
            header = kind(head[: kind.template_dtype.itemsize])  # extensions, of any size, are not looked at
            shape = header.get_data_shape()
            dtype = header.get_data_dtype()
            slope, intercept = header.get_slope_inter()
            codes = int(header["sform_code"]), int(header["qform_code"])
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
            affine[:3] *= MM.get(int(header["xyzt_units"]) & SPATIAL_UNITS, 1.0)
            offset = int(header.get_data_offset())
            is_label_map = int(header["intent_code"]) == INTENT_LABEL
    except (
        HeaderDataError,
        ImageFileError,
        WrapStructError,
        ValueError,
        TypeError,
        KeyError,
        ArithmeticError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SeriesError(f"{source.name}: not a readable NIfTI header ({reason[:80]})") from None
    size, volumes = _check_shape(source, shape)
    if dtype.kind not in REAL_KINDS:
        raise SeriesError(f"{source.name}: holds {dtype} voxels; real numbers are read")
    if codes == (0, 0):
        raise SeriesError(
            f"{source.name}: neither sform nor qform is set: "
            "the header does not say where the voxels lie in the patient"
        )
    try:
        axis_order(affine)
    except SeriesError as error:
        raise SeriesError(f"{source.name}: {error}") from None
    claimed = max(offset, 0) + int(np.prod([*size, volumes], dtype=object)) * dtype.itemsize
    if offset < 0 or claimed > MAX_BYTES:
        raise SeriesError(f"{source.name}: claims {size} voxels of {dtype}, more than {MAX_BYTES >> 30} GiB")
    if _is_gzip(source) and claimed > max(SMALL_BYTES, MAX_ARCHIVE_RATIO * source.size):
        raise SeriesError(f"{source.name}: unpacks to more than {MAX_ARCHIVE_RATIO} times its size; no MR series does")
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    named = one_line(source.name)
    return NiftiFile(source, named, (*size, volumes), dtype, offset, slope, intercept, affine, is_label_map)


def read_nifti(file: NiftiFile, volume: int = 0) -> Volume:
    """Read one volume of a NIfTI file.

    The fastest axis of the file becomes w, the slowest d, so that the bytes lie as they do in the file.

    Raises
    ------
    SeriesError
        Where the file is cut off, has no such volume, or holds values that are not finite.
    """
    name = file.source.name
    width, height, depth, volumes = file.shape
    if not 0 <= volume < volumes:
        raise SeriesError(f"{name}: has {volumes} volumes, --volume {volume} is none of them")
    count = width * height * depth * file.dtype.itemsize
    data = _bytes(file.source, file.offset + volume * count, count)
    if len(data) < count:
        raise SeriesError(f"{name}: is cut off: volume {volume} has {len(data)} of {count} bytes")
    stored = np.frombuffer(data, dtype=file.dtype).reshape(depth, height, width)
    # nibabel's axes are (i, j, k) = (w, h, d); LPS is RAS with the first two directions reversed.
    affine = (FLIP_RAS_LPS @ file.affine_ras_mm)[:, [2, 1, 0, 3]]
    warnings = [f"the file holds {volumes} volumes; this is volume {volume} (--volume)"] if volumes > 1 else []
    info = SeriesInfo(
        uid=file.uid,
        path=file.source.path,
        description=file.description,
        files=1,
        volume_index=volume,
        volumes=volumes,
        warnings=tuple(warnings),
    )
    kept = KEPT.get(file.dtype.newbyteorder("=").name)
    if kept and file.slope > 0:
        voxels = np.ascontiguousarray(stored, dtype=kept)
        counter = ValueCounter()
        for plane in voxels:
            counter.add(*count_values(plane))
        return Volume(voxels, affine, info, file.slope, file.intercept, counter.histogram())
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = np.empty(stored.shape, np.float32)
        for plane, to in zip(stored, rescaled, strict=True):
            to[:] = plane.astype(np.float64) * file.slope + file.intercept
    if not np.isfinite(rescaled).all():
        raise SeriesError(
            f"{name}: holds voxels that are not finite (NaN or infinity): write the background value in their place"
        )
    return Volume(rescaled, affine, info)


def _check_shape(source: Source, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    sizes = [int(size) for size in shape]
    while len(sizes) > 4 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) not in (3, 4) or min(sizes) < 1:
        raise SeriesError(
            f"{source.name}: has the shape {tuple(shape)}; three dimensions, or four with volumes, are read"
        )
    return (sizes[0], sizes[1], sizes[2]), sizes[3] if len(sizes) == 4 else 1


def _is_nifti2(head: bytes) -> bool:
    return head[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")


def _is_gzip(source: Source) -> bool:
    return source.name.lower().endswith(".gz")


def _bytes(source: Source, offset: int, count: int) -> bytes:
    """Read from a plain or gzipped file, never inflating more than was asked for."""
    with _readable(source):
        if not _is_gzip(source):
            return source.read(offset, count)
        with _opened(source) as packed, gzip.open(packed) as file:
            file.seek(offset)
            return file.read(count)


def _opened(source: Source) -> BufferedReader | BytesIO:
    return source.path.open("rb") if source.data is None else BytesIO(source.data)


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Let a file that cannot be read be a series that cannot."""
    try:
        yield
    except EOFError:
        raise SeriesError(f"{source.name}: the gzip stream is cut off") from None
    except (OSError, zlib.error) as error:
        raise SeriesError(f"{source.name}: cannot be read ({str(error).splitlines()[0]})") from None
