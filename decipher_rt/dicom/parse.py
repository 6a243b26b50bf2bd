"""From a source to an ImageFile: the strict walker where it can, pydicom everywhere else.

The two must agree on every value; what is built from the elements is written once, for both.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from decipher_rt.dicom import elements as tags
from decipher_rt.dicom.elements import DatasetElements, Elements, RawElements
from decipher_rt.dicom.enhanced import FRAME_GROUPS, enhanced_frames
from decipher_rt.dicom.image import (
    ENHANCED,
    Frame,
    ImageFile,
    NotAnImageError,
    PixelFormat,
    classic_acquisition,
    classic_frame,
    pixel_format,
)
from decipher_rt.dicom.mosaic import is_mosaic, mosaic_frames, require_no_enhanced_mosaic, require_no_grid
from decipher_rt.dicom.source import Source
from decipher_rt.dicom.walk import UnusualFileError, Walker
from decipher_rt.errors import one_line
from decipher_rt.quiet import quiet
from decipher_rt.volume import Acquisition

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

NATIVE_LITTLE_ENDIAN: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
META_BYTES: Final = 2048  # the file meta information, which names the transfer syntax, lies within
# Values of so many bytes, of files of so many, stay on the disk until they are asked for.
LARGE_FILE: Final = 1 << 22
LARGE_VALUE: Final = 1 << 16
# A deflated data set may inflate to this much; an MR image inflates about twofold, a hostile one a thousandfold.
MAX_INFLATED_BYTES: Final = 1 << 29
MAX_INFLATED_RATIO: Final = 200
FLOAT_PIXEL_DATA: Final = 0x7FE00008
DOUBLE_PIXEL_DATA: Final = 0x7FE00009
IMAGE_STORAGE: Final = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", *ENHANCED)
# Two groups with which a data set without preamble may start (file meta information, identification).
BARE_STARTS: Final = (b"\x02\x00", b"\x08\x00")

LOUD: Final = ("pydicom", "openjpeg", "pylibjpeg", "jpeg_ls")

PIXEL_TAGS: Final = (
    tags.SAMPLES, tags.PHOTOMETRIC, tags.ROWS, tags.COLUMNS, tags.BITS_ALLOCATED, tags.BITS_STORED, tags.HIGH_BIT,
    tags.PIXEL_REPRESENTATION,
)  # fmt: skip
ACQUISITION_TAGS: Final = (
    tags.CHARACTER_SET, tags.MODALITY, tags.BODY_PART, tags.FIELD_STRENGTH, tags.REPETITION_TIME, tags.ECHO_TIME,
    tags.INVERSION_TIME, tags.FLIP_ANGLE, tags.SCANNING_SEQUENCE, tags.IMAGE_TYPE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file that belongs to no image series: not DICOM at all, or DICOM without an image. ``what`` says which."""

    source: Source
    what: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """A DICOM file that cannot be read as far as its Series Instance UID. ``trouble`` is a whole message."""

    source: Source
    trouble: str


def wanted_tags(keep_phi: bool) -> set[int]:
    """Return the tags whose values leave the header; those of the patient only where they were asked for."""
    return {tag for tag in tags.VR if keep_phi or tag not in tags.PATIENT_TAGS}


def parse_file(source: Source, walker: Walker, keep_phi: bool = False) -> ImageFile | Foreign | Damaged:
    """Parse the header of one source, never its pixels."""
    try:
        with suppress(UnusualFileError, ValueError, OverflowError):
            walked = walker.walk(source)
            return _image_file(
                source, walked.elements, walked.transfer_syntax, walked.pixel_offset, walked.pixel_length
            )
        return parse_with_pydicom(source, keep_phi)
    except OSError as error:
        return Damaged(source, f"{source.name}: {error.strerror or error}")


def _image_file(source: Source, elements: RawElements, transfer_syntax: str, offset: int, length: int) -> ImageFile:
    """Build from a walk; raises UnusualFileError or ValueError on whatever pydicom should look at."""
    series_uid = tags.text(elements, tags.SERIES_UID)
    if not series_uid:
        raise UnusualFileError("no series")
    pixels = _pixel_format(_raw_values(elements, PIXEL_TAGS), transfer_syntax)
    if length - pixels.frame_bytes not in (0, pixels.frame_bytes % 2):
        raise UnusualFileError("the length of Pixel Data is not that of one image")
    acquisition = _acquisition(_raw_values(elements, ACQUISITION_TAGS))
    frames = _classic_frames(elements, source, pixels, offset, acquisition)
    return _describe(source, elements, series_uid, frames)


def _raw_values(elements: RawElements, wanted: tuple[int, ...]) -> tuple[tuple[int, bytes], ...]:
    values = elements.values
    return tuple([(tag, values[tag]) for tag in wanted if tag in values])


# Within a series these are the same from file to file: equal bytes share one object.
@lru_cache(maxsize=16)
def _pixel_format(values: tuple[tuple[int, bytes], ...], transfer_syntax: str) -> PixelFormat:
    return pixel_format(RawElements(dict(values)), transfer_syntax)


@lru_cache(maxsize=16)
def _acquisition(values: tuple[tuple[int, bytes], ...]) -> Acquisition:
    return classic_acquisition(RawElements(dict(values)))


def _classic_frames(
    elements: Elements, source: Source, pixels: PixelFormat, offset: int | None, acquisition: Acquisition
) -> tuple[Frame, ...]:
    require_no_grid(elements)
    frame = classic_frame(elements, source, pixels, offset, acquisition)
    return mosaic_frames(elements, frame) if is_mosaic(acquisition.image_type) else (frame,)


def _describe(
    source: Source, elements: Elements, series_uid: str, frames: tuple[Frame, ...] = (), trouble: str = ""
) -> ImageFile:
    notes = ("the images were compressed with loss",) if tags.text(elements, tags.LOSSY) == "01" else ()
    patient = {name: tags.text(elements, tag) for tag, name in tags.PATIENT_TAGS.items() if elements.texts(tag)}
    return ImageFile(
        source,
        series_uid,
        one_line(tags.text(elements, tags.SERIES_DESCRIPTION)),
        one_line(tags.text(elements, tags.MANUFACTURER)),
        tags.text(elements, tags.MODALITY),
        frames,
        trouble,
        notes,
        patient,
    )


def parse_with_pydicom(source: Source, keep_phi: bool = False) -> ImageFile | Foreign | Damaged:
    """Parse with the parser of record."""
    if source.name.lower().endswith(".zip"):
        return Foreign(source, "an archive, which is read where it is given itself")
    head = source.head(132)
    if head[128:132] != b"DICM" and head[:2] not in BARE_STARTS:
        return Foreign(source, "not a DICOM file")
    bare = head[128:132] != b"DICM"
    try:
        with quiet_pydicom():
            dataset = _read_header(source)
            return _from_dataset(source, dataset, keep_phi, bare)
    except NotAnImageError as error:
        return Damaged(source, f"{source.name}: {error}")
    except pydicom_errors() as error:
        if bare:
            return Foreign(source, "not a DICOM file")
        return Damaged(source, f"{source.name}: damaged DICOM file ({_brief(error)})")


def _read_header(source: Source) -> FileDataset:
    """Read a file with pydicom, a large one on disk without its pixels; of small ones that would take longer."""
    import pydicom

    if source.data is not None or source.size < LARGE_FILE or DEFLATED in source.head(META_BYTES):
        return read_dataset(source)
    return pydicom.dcmread(source.path, force=True, defer_size=LARGE_VALUE)


def read_dataset(source: Source) -> FileDataset:
    """Read a whole file with pydicom. Raises what pydicom raises, and NotAnImageError on a deflate bomb."""
    import pydicom

    data = source.read(0, source.size)
    _check_inflated_size(data)
    return pydicom.dcmread(BytesIO(data), force=True)


@lru_cache(maxsize=1)
def pydicom_errors() -> tuple[type[Exception], ...]:
    """Return what pydicom and its decoders raise on damaged input. They promise no list; these were met in fuzzing."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (
        BytesLengthException,
        InvalidDicomError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        OSError,
        EOFError,
        MemoryError,
        struct.error,
        zlib.error,
    )


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom and the decoders from warning and logging: they write whole values, of the patient too.

    What matters is checked here and said once, with the file's name. Warnings and validation are the process's as well
    as the loggers, and so under their lock.
    """
    from pydicom import config

    with quiet(*LOUD), warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _from_dataset(source: Source, dataset: FileDataset, keep_phi: bool, bare: bool) -> ImageFile | Foreign | Damaged:
    elements = DatasetElements(dataset)
    sop_class = tags.text(elements, tags.SOP_CLASS_UID)
    if bare and not sop_class:
        return Foreign(source, "not a DICOM file")
    has_pixels = any(tag in dataset for tag in (tags.PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA))
    # A file that is cut off within its SOP class still names it in its file meta information.
    classes = {sop_class, _media_class(dataset)} - {""}
    if not has_pixels and classes.isdisjoint(IMAGE_STORAGE):
        if classes or "SOPInstanceUID" in dataset:
            return Foreign(source, "a DICOM object without an image")
        return Damaged(source, f"{source.name}: cut off or damaged in its header")
    series_uid = tags.text(elements, tags.SERIES_UID)
    if not series_uid:
        return Damaged(source, f"{source.name}: has no Series Instance UID; the file is cut off or damaged")
    if not keep_phi:
        for tag in tags.PATIENT_TAGS:
            if tag in dataset:
                del dataset[tag]
    try:
        frames = _frames_of_dataset(source, dataset, elements, has_pixels)
    except NotAnImageError as error:
        return _describe(source, elements, series_uid, trouble=f"{source.name}: {error}")
    except pydicom_errors() as error:
        return _describe(source, elements, series_uid, trouble=f"{source.name}: damaged header ({_brief(error)})")
    return _describe(source, elements, series_uid, frames)


def _media_class(dataset: FileDataset) -> str:
    meta = getattr(dataset, "file_meta", None)
    return str(meta.get("MediaStorageSOPClassUID", "")) if meta is not None else ""


def _frames_of_dataset(
    source: Source, dataset: FileDataset, elements: DatasetElements, has_pixels: bool
) -> tuple[Frame, ...]:
    if not has_pixels:
        raise NotAnImageError("holds no pixel data, or is cut off before it")
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    syntax = syntax or ("1.2.840.10008.1.2" if dataset.original_encoding[0] else "1.2.840.10008.1.2.1")
    floating = tags.PIXEL_DATA not in dataset
    pixels = pixel_format(elements, syntax, floating)
    element = dataset.get_item(tags.PIXEL_DATA if not floating else _float_tag(dataset), keep_deferred=True)
    length = _value_length(element, source.size)
    offset = None
    if _is_native(syntax):
        expected = tags.integer(elements, tags.FRAMES, 1) * pixels.frame_bytes
        if length < expected:
            raise NotAnImageError(f"is cut off: its pixel data has {length} of {expected} bytes")
        # Some writers pad; as much as a whole image more means that the header describes another image.
        if length >= expected + pixels.frame_bytes + expected % 2:
            raise NotAnImageError(f"has {length} bytes of pixel data where its header describes {expected}")
        if syntax in NATIVE_LITTLE_ENDIAN and not floating:
            offset = _value_position(element, dataset)
    if FRAME_GROUPS in dataset:
        require_no_grid(elements)
        require_no_enhanced_mosaic(elements)
        return enhanced_frames(elements, source, pixels, offset)
    return _classic_frames(elements, source, pixels, offset, classic_acquisition(elements))


def _is_native(syntax: str) -> bool:
    from pydicom.uid import UID

    uid = UID(syntax)
    if not uid.is_transfer_syntax:
        raise NotAnImageError(f"has the unknown transfer syntax {syntax or 'none'}")
    return not uid.is_encapsulated


def _float_tag(dataset: FileDataset) -> int:
    return FLOAT_PIXEL_DATA if FLOAT_PIXEL_DATA in dataset else DOUBLE_PIXEL_DATA


def _value_length(element: Any, size: int) -> int:
    """Return how many bytes of a value there are, which may be fewer than its length says."""
    if element.value is None:
        return min(int(element.length), size - int(element.value_tell))
    return len(element.value)


def _value_position(element: object, dataset: FileDataset) -> int | None:
    """Return where the value lies in the file, unless pydicom read it in another encoding than was declared."""
    declared = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if declared is None or dataset.original_encoding != (declared.is_implicit_VR, declared.is_little_endian):
        return None
    position = getattr(element, "value_tell", None)
    return int(position) if position else None


def _check_inflated_size(data: bytes) -> None:
    """Refuse a deflated data set that inflates to far more than an image (pydicom inflates without a limit)."""
    if DEFLATED not in data[:META_BYTES] or data[128:132] != b"DICM":
        return
    start = 132
    while data[start : start + 2] == b"\x02\x00":
        vr = data[start + 4 : start + 6]
        long = vr in (b"OB", b"UN", b"OW", b"SQ", b"UT")
        size = struct.unpack_from("<I", data, start + 8)[0] if long else struct.unpack_from("<H", data, start + 6)[0]
        start += size + (12 if long else 8)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    limit = min(MAX_INFLATED_BYTES, max(len(data) * MAX_INFLATED_RATIO, 1 << 26))
    waiting, total = data[start:], 0
    while waiting and not inflater.eof:
        piece = inflater.decompress(waiting, 1 << 20)
        total += len(piece)
        waiting = inflater.unconsumed_tail
        if total > limit:
            raise NotAnImageError(f"inflates to more than {limit >> 20} MiB; no MR image does")
        if not piece and not waiting:
            break


def _brief(error: Exception) -> str:
    """Name an error of pydicom in one line without repeating values of the header."""
    if isinstance(error, EOFError):
        return "it ends too early"
    return "it asks for too much memory" if isinstance(error, MemoryError) else type(error).__name__
