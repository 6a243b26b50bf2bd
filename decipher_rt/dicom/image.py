"""One image plane as a frame: where it lies, its kind, which volume it may belong to, where its pixels are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from decipher_rt.dicom import elements as tags
from decipher_rt.dicom.elements import Elements
from decipher_rt.dicom.source import Source
from decipher_rt.volume import Acquisition

Kind = Literal["magnitude", "field map", "phase", "real", "imaginary"]
Vector = tuple[float, float, float]

ENHANCED: Final = {
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image Storage",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT Image Storage",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET Image Storage",
}
# Image Type and Frame Type values that name a kind (PS3.3 C.8.3.1.1.1, C.8.13.3.1.1; _FFE and the like are Philips').
KIND_WORDS: Final[dict[str, Kind]] = {
    "P": "phase", "PHASE": "phase", "PHASE MAP": "phase", "PHASE_MAP": "phase",
    "R": "real", "REAL": "real", "I": "imaginary", "IMAGINARY": "imaginary",
    "FIELD_MAP": "field map", "FIELDMAP": "field map", "B0 MAP": "field map", "B0_MAP": "field map", "B0": "field map",
}  # fmt: skip
# No patient is larger than 1 km; it keeps arithmetic with hostile numbers finite.
MAX_COORDINATE_MM: Final = 1e6
GE_KINDS: Final[dict[int, Kind]] = {0: "magnitude", 1: "phase", 2: "real", 3: "imaginary"}


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How the pixels of a file are stored (PS3.3 C.7.6.3). ``signed`` is Pixel Representation."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric: str
    transfer_syntax: str
    floating: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed image."""
        return self.rows * self.columns * (self.bits_allocated // 8)


@dataclass(frozen=True, slots=True)
class VolumeKeys:
    """What tells the volumes of one series apart, in the order in which it is tried; None where a file does not say."""

    temporal_position: float | None = None
    echo_time: float | None = None
    b_value: float | None = None
    gradient: tuple[float, ...] | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    trigger_time: float | None = None
    image_type: tuple[str, ...] = ()
    acquisition_number: float | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One image plane.

    Attributes
    ----------
    pixels : PixelFormat
        Of the image in the file; a mosaic's image holds many planes.
    index : int
        Number of the image in the file, from 0.
    offset : int or None
        Where the image starts in the source, uncompressed little endian; None where pydicom has to decode it.
    tile : (row, column, rows, columns) or None
        The part of the image that is this plane (mosaics).
    position, orientation, spacing
        Image Position and Orientation (Patient), LPS mm; Pixel Spacing (between rows, between columns) in mm.
    instance : (int, int)
        Instance Number and number of the image in its file: the order of acquisition as the scanner counts it.
    stack : str
        Name of the stack where the file names one.
    stated_images, stated_slices : int
        How many images of the acquisition, and slices of each of its volumes, the scanner counts; 0 where it does not.
    """

    source: Source
    sop_uid: str
    pixels: PixelFormat
    index: int
    offset: int | None
    position: Vector
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    slope: float
    intercept: float
    kind: Kind
    keys: VolumeKeys
    instance: tuple[int, int]
    acquisition: Acquisition
    thickness: float | None = None
    slice_spacing: float | None = None
    stack: str = ""
    tile: tuple[int, int, int, int] | None = None
    stated_images: int = 0
    stated_slices: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of this plane."""
        return (self.tile[2], self.tile[3]) if self.tile else (self.pixels.rows, self.pixels.columns)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One DICOM file of a series: its frames, or the trouble (a whole message) that keeps it from being an image."""

    source: Source
    series_uid: str
    description: str = ""
    manufacturer: str = ""
    modality: str = ""
    frames: tuple[Frame, ...] = ()
    trouble: str = ""
    notes: tuple[str, ...] = ()
    patient: dict[str, str] = field(default_factory=dict)


class NotAnImageError(ValueError):
    """What keeps a file from being an image with a place in the patient, in words that follow the file's name."""


def pixel_format(elements: Elements, transfer_syntax: str, floating: bool = False) -> PixelFormat:
    """Read the Image Pixel module.

    Raises
    ------
    NotAnImageError
        Where it describes no greyscale image of 8 to 32 bits.
    """
    try:
        rows, columns = tags.integer(elements, tags.ROWS), tags.integer(elements, tags.COLUMNS)
        samples = tags.integer(elements, tags.SAMPLES, 1)
        allocated = tags.integer(elements, tags.BITS_ALLOCATED)
        stored = tags.integer(elements, tags.BITS_STORED, allocated)
        high = tags.integer(elements, tags.HIGH_BIT, stored - 1)
        signed = tags.integer(elements, tags.PIXEL_REPRESENTATION, 0)
    except ValueError as error:
        raise NotAnImageError(f"does not describe its pixels: {error}") from None
    photometric = tags.text(elements, tags.PHOTOMETRIC)
    if rows < 1 or columns < 1:
        raise NotAnImageError(f"has {rows} rows and {columns} columns")
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotAnImageError(f"is not a greyscale image ({photometric or 'no photometric interpretation'})")
    if floating:
        if allocated not in (32, 64):
            raise NotAnImageError(f"has floating point pixels of {allocated} bits; 32 and 64 are read")
    elif allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1 or signed not in (0, 1):
        raise NotAnImageError(
            f"has {allocated} bits a pixel, {stored} of them stored, high bit {high}; 8, 16 or 32 bits with the "
            "high bit at the top of the stored ones are read"
        )
    return PixelFormat(rows, columns, allocated, stored, bool(signed), photometric, transfer_syntax, floating)


def rescale(elements: Elements) -> tuple[float, float]:
    """Return Rescale Slope and Intercept (PS3.3 C.11.1), 1 and 0 where there are none."""
    slope, intercept = tags.number(elements, tags.RESCALE_SLOPE), tags.number(elements, tags.RESCALE_INTERCEPT)
    slope = 1.0 if slope is None else slope
    intercept = 0.0 if intercept is None else intercept
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise NotAnImageError(f"has the rescale slope {slope} and intercept {intercept}")
    return slope, intercept


def plane(
    position: tuple[float, ...], orientation: tuple[float, ...], spacing: tuple[float, ...]
) -> tuple[Vector, tuple[float, ...], tuple[float, float]]:
    """Check the Image Plane module (PS3.3 C.7.6.2) and return position, orientation and pixel spacing.

    Raises
    ------
    NotAnImageError
        Where the image does not say where it lies in the patient.
    """
    absent = [
        name
        for name, values, count in (
            ("Image Position (Patient)", position, 3),
            ("Image Orientation (Patient)", orientation, 6),
            ("Pixel Spacing", spacing, 2),
        )
        if len(values) != count or not all(abs(value) <= MAX_COORDINATE_MM for value in values)
    ]
    if absent:
        raise NotAnImageError(f"does not say where it lies in the patient: no usable {' and '.join(absent)}")
    if min(spacing) <= 0:
        raise NotAnImageError(f"has the pixel spacing {spacing[0]:g} x {spacing[1]:g} mm")
    return (position[0], position[1], position[2]), orientation, (spacing[0], spacing[1])


def image_kind(image_type: tuple[str, ...], component: str = "", ge_kind: float | None = None) -> Kind:
    """Tell magnitude, phase, real, imaginary images and field maps apart by what the header calls them."""
    named = [KIND_WORDS[word] for word in _kind_words(image_type) if word in KIND_WORDS]
    if "field map" in named:
        return "field map"
    if component in ("PHASE", "REAL", "IMAGINARY", "MAGNITUDE"):
        return KIND_WORDS.get(component, "magnitude")
    if ge_kind is not None and int(ge_kind) in GE_KINDS:
        return GE_KINDS[int(ge_kind)]
    return named[0] if named else "magnitude"


def _kind_words(image_type: tuple[str, ...]) -> list[str]:
    # The first two values are ORIGINAL/DERIVED and PRIMARY/SECONDARY; Philips writes M_FFE, P_SE and the like.
    words = []
    for value in image_type[2:]:
        letter, _, technique = value.partition("_")
        words.append(letter if letter in ("P", "R", "I") and technique in ("FFE", "SE", "IR", "EPI") else value)
    return words


def classic_frame(
    elements: Elements, source: Source, pixels: PixelFormat, offset: int | None, acquisition: Acquisition
) -> Frame:
    """Build the frame of a file that holds one image.

    Raises
    ------
    NotAnImageError, ValueError
        Where the header does not say what is needed, or not in numbers.
    """
    if tags.integer(elements, tags.FRAMES, 1) != 1:
        raise NotAnImageError("holds several images without functional groups that say where each one lies")
    position, orientation, spacing = plane(
        elements.numbers(tags.POSITION), elements.numbers(tags.ORIENTATION), elements.numbers(tags.PIXEL_SPACING)
    )
    slope, intercept = rescale(elements)
    ge_kind = None
    if tags.text(elements, tags.GE_BLOCK) == "GEMS_PARM_01":
        ge_kind = tags.number(elements, tags.GE_IMAGE_KIND)
    image_type = acquisition.image_type
    return Frame(
        source,
        tags.text(elements, tags.SOP_INSTANCE_UID),
        pixels,
        0,
        offset,
        position,
        orientation,
        spacing,
        slope,
        intercept,
        image_kind(image_type, tags.text(elements, tags.COMPLEX_IMAGE_COMPONENT), ge_kind),
        VolumeKeys(
            temporal_position=tags.number(elements, tags.TEMPORAL_POSITION),
            echo_time=acquisition.echo_time_ms,
            b_value=tags.number(elements, tags.B_VALUE),
            inversion_time=acquisition.inversion_time_ms,
            flip_angle=acquisition.flip_angle_deg,
            trigger_time=tags.number(elements, tags.TRIGGER_TIME),
            image_type=image_type,
            acquisition_number=tags.number(elements, tags.ACQUISITION_NUMBER),
        ),
        (int(tags.number(elements, tags.INSTANCE_NUMBER) or 0), 0),
        acquisition,
        tags.number(elements, tags.SLICE_THICKNESS),
        tags.number(elements, tags.SPACING_BETWEEN_SLICES),
        stated_images=_stated(elements, tags.IMAGES_IN_ACQUISITION),
        stated_slices=_stated(elements, tags.PHILIPS_SLICES) if _has_philips_block(elements) else 0,
    )


def _has_philips_block(elements: Elements) -> bool:
    return tags.text(elements, tags.PHILIPS_BLOCK) == "Philips Imaging DD 001"


def _stated(elements: Elements, tag: int) -> int:
    try:
        return int(tags.number(elements, tag) or 0)
    except (ValueError, OverflowError):  # nothing else depends on it
        return 0


def classic_acquisition(elements: Elements) -> Acquisition:
    """Read how a classic image was made (PS3.3 C.8.3.1)."""
    return Acquisition(
        modality=tags.text(elements, tags.MODALITY) or None,
        body_part=tags.text(elements, tags.BODY_PART) or None,
        field_strength_t=tags.number(elements, tags.FIELD_STRENGTH),
        repetition_time_ms=tags.number(elements, tags.REPETITION_TIME),
        echo_time_ms=tags.number(elements, tags.ECHO_TIME),
        inversion_time_ms=tags.number(elements, tags.INVERSION_TIME),
        flip_angle_deg=tags.number(elements, tags.FLIP_ANGLE),
        scanning_sequence=tags.text(elements, tags.SCANNING_SEQUENCE) or None,
        image_type=elements.texts(tags.IMAGE_TYPE),
    )
