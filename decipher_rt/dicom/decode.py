"""Decode pixels that do not lie in the file as they are: compressed, big endian, deflated, floating point.

pydicom does all of it.

Every decoder that is asked for by name here has a permissive licence. pylibjpeg-libjpeg and python-jpeg (GPL) would be
taken by pydicom where they are installed; naming the decoder keeps them out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.image import NotAnImageError, PixelFormat
from decipher_rt.dicom.parse import pydicom_errors, quiet_pydicom, read_dataset
from decipher_rt.dicom.source import Source
from decipher_rt.errors import SeriesError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

# Transfer syntax: pydicom's name of the decoder to use.
DECODERS: Final = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "gdcm",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "pillow",  # JPEG extended, 8 bit (pydicom says so where it has 12)
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless, first order prediction
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, by pylibjpeg-openjpeg
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # HTJ2K, by pylibjpeg-openjpeg
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
RLE: Final = "1.2.840.10008.1.2.5"
# Decoders in native code can end the process on damaged images; see `decode_process`.
NATIVE_CODE: Final = frozenset(DECODERS) - {RLE}
UNCOMPRESSED: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
# A compressed image says its size in a few bytes and a decoder allocates it: no slice has more pixels than this.
MAX_COMPRESSED_PIXELS: Final = 1 << 26
JPEG_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7})
# Markers that stand alone, without a length.
JPEG_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})


def decode_planes(source: Source, pixels: PixelFormat, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Decode some images of a file, in the order asked for.

    Yields
    ------
    ndarray, shape (rows, columns)
        Stored values as pydicom gives them: unused high bits corrected, no colour or modality transformation.

    Raises
    ------
    SeriesError
        Naming the file, where pixels are damaged or no decoder reads them.
    """
    try:
        with quiet_pydicom():
            dataset = read_dataset(source)
            planes = _planes(dataset, pixels, indices)
            for index in indices:
                plane = next(planes)
                yield _checked(plane, pixels, index)
    except NotAnImageError as error:
        raise SeriesError(f"{source.name}: {error}") from None
    except pydicom_errors() as error:
        raise SeriesError(
            f"{source.name}: the pixels cannot be decoded; the file is cut off or damaged ({type(error).__name__})"
        ) from None


def _checked(plane: NDArray[Any], pixels: PixelFormat, index: int) -> NDArray[Any]:
    if plane.shape != (pixels.rows, pixels.columns):
        raise NotAnImageError(f"image {index + 1} decodes to {plane.shape}")
    return plane


def _planes(dataset: FileDataset, pixels: PixelFormat, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = pixels.transfer_syntax
    name = str(UID(syntax).name)
    if syntax not in DECODERS and syntax not in UNCOMPRESSED:
        raise NotAnImageError(f"is compressed as {name}, which is not read; convert it to JPEG 2000 or uncompressed")
    decoder = get_decoder(UID(syntax))
    if not decoder.is_available:
        missing = "; ".join(decoder.missing_dependencies)
        raise NotAnImageError(f"is compressed as {name}, and its decoder is not installed ({missing})")
    plugin = DECODERS.get(syntax, "")
    if plugin:
        _check_codestreams(dataset, pixels, indices)
    for plane, _ in decoder.iter_array(dataset, indices=list(indices), raw=True, decoding_plugin=plugin):
        yield np.asarray(plane)


def _check_codestreams(dataset: FileDataset, pixels: PixelFormat, indices: Sequence[int]) -> None:
    """Refuse images whose own header contradicts the data set before a native decoder sees them."""
    from pydicom.encaps import generate_frames

    if pixels.rows * pixels.columns > MAX_COMPRESSED_PIXELS:
        raise NotAnImageError(f"claims {pixels.rows} x {pixels.columns} compressed pixels")
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    asked = set(indices)
    seen = 0
    for index, frame in enumerate(generate_frames(dataset.PixelData, number_of_frames=count)):
        seen += 1
        if index not in asked:
            continue
        if pixels.transfer_syntax == RLE:
            (segments,) = struct.unpack_from("<I", frame)
            if segments != pixels.bits_allocated // 8:
                raise NotAnImageError(f"image {index + 1} has {segments} RLE segments for {pixels.bits_allocated} bits")
            continue
        found = _codestream_size(bytes(frame))
        if found is None:
            raise NotAnImageError(f"image {index + 1} is not compressed as the file says")
        rows, columns, samples, bits = found
        if (rows, columns, samples) != (pixels.rows, pixels.columns, 1) or bits > pixels.bits_allocated:
            raise NotAnImageError(
                f"image {index + 1} is compressed with {rows} x {columns} pixels of {samples} x {bits} bits, "
                f"the header says {pixels.rows} x {pixels.columns} of {pixels.bits_allocated}"
            )
    if seen < max(asked, default=-1) + 1:
        raise NotAnImageError(f"is cut off: it holds {seen} of {count} compressed images")


def _codestream_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Read (rows, columns, samples, bits) from a JPEG, JPEG-LS (10918-1 B.2.2) or JPEG 2000 (15444-1 A.5.1) header."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        _, _, right, bottom, left, top = struct.unpack_from(">HHIIII", frame, 4)
        (samples,) = struct.unpack_from(">H", frame, 40)
        return bottom - top, right - left, samples, (frame[42] & 0x7F) + 1
    if frame[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 < len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in JPEG_FRAMES:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", frame, position + 4)
            return rows, columns, samples, bits
        if marker == 0xFF:
            position += 1
        elif marker in JPEG_BARE:
            position += 2
        else:
            (length,) = struct.unpack_from(">H", frame, position + 2)
            position += 2 + length
    return None
