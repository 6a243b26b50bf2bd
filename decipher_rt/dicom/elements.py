"""Data elements that reading needs, whoever parsed them: the walker (raw values) or pydicom (a dataset).

Everything above this module asks for values by tag and cannot tell which parser answered.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CHARACTER_SET: Final = 0x00080005
IMAGE_TYPE: Final = 0x00080008
SOP_CLASS_UID: Final = 0x00080016
SOP_INSTANCE_UID: Final = 0x00080018
MODALITY: Final = 0x00080060
MANUFACTURER: Final = 0x00080070
SERIES_DESCRIPTION: Final = 0x0008103E
COMPLEX_IMAGE_COMPONENT: Final = 0x00089208
PATIENT_NAME: Final = 0x00100010
PATIENT_ID: Final = 0x00100020
PATIENT_BIRTH_DATE: Final = 0x00100030
PATIENT_SEX: Final = 0x00100040
BODY_PART: Final = 0x00180015
SCANNING_SEQUENCE: Final = 0x00180020
SLICE_THICKNESS: Final = 0x00180050
REPETITION_TIME: Final = 0x00180080
ECHO_TIME: Final = 0x00180081
INVERSION_TIME: Final = 0x00180082
FIELD_STRENGTH: Final = 0x00180087
SPACING_BETWEEN_SLICES: Final = 0x00180088
TRIGGER_TIME: Final = 0x00181060
FLIP_ANGLE: Final = 0x00181314
B_VALUE: Final = 0x00189087
SERIES_UID: Final = 0x0020000E
ACQUISITION_NUMBER: Final = 0x00200012
INSTANCE_NUMBER: Final = 0x00200013
POSITION: Final = 0x00200032
ORIENTATION: Final = 0x00200037
TEMPORAL_POSITION: Final = 0x00200100
IMAGES_IN_ACQUISITION: Final = 0x00201002
SAMPLES: Final = 0x00280002
PHOTOMETRIC: Final = 0x00280004
FRAMES: Final = 0x00280008
ROWS: Final = 0x00280010
COLUMNS: Final = 0x00280011
PIXEL_SPACING: Final = 0x00280030
BITS_ALLOCATED: Final = 0x00280100
BITS_STORED: Final = 0x00280101
HIGH_BIT: Final = 0x00280102
PIXEL_REPRESENTATION: Final = 0x00280103
RESCALE_INTERCEPT: Final = 0x00281052
RESCALE_SLOPE: Final = 0x00281053
LOSSY: Final = 0x00282110
PHILIPS_BLOCK: Final = 0x20010010
PHILIPS_SLICES: Final = 0x20011018
GE_BLOCK: Final = 0x00430010
GE_IMAGE_KIND: Final = 0x0043102F
SIEMENS_BLOCK: Final = 0x00190010
SIEMENS_MOSAIC_IMAGES: Final = 0x0019100A
UIH_GRID_IMAGES: Final = 0x00651050
CSA_BLOCKS: Final = (0x00290010, 0x00290011, 0x00290012)
CSA_IMAGE_HEADERS: Final = (0x00291010, 0x00291110, 0x00291210)
PIXEL_DATA: Final = 0x7FE00010

PATIENT_TAGS: Final = {
    PATIENT_NAME: "name",
    PATIENT_ID: "id",
    PATIENT_BIRTH_DATE: "birth_date",
    PATIENT_SEX: "sex",
}

# Value representations (PS3.6). OB stands for raw bytes of a private element.
VR: Final[dict[int, str]] = {
    CHARACTER_SET: "CS", IMAGE_TYPE: "CS", SOP_CLASS_UID: "UI", SOP_INSTANCE_UID: "UI", MODALITY: "CS",
    MANUFACTURER: "LO", SERIES_DESCRIPTION: "LO", COMPLEX_IMAGE_COMPONENT: "CS", PATIENT_NAME: "PN", PATIENT_ID: "LO",
    PATIENT_BIRTH_DATE: "DA", PATIENT_SEX: "CS", BODY_PART: "CS", SCANNING_SEQUENCE: "CS", SLICE_THICKNESS: "DS",
    REPETITION_TIME: "DS", ECHO_TIME: "DS", INVERSION_TIME: "DS", FIELD_STRENGTH: "DS", SPACING_BETWEEN_SLICES: "DS",
    TRIGGER_TIME: "DS", FLIP_ANGLE: "DS", B_VALUE: "FD", SERIES_UID: "UI", ACQUISITION_NUMBER: "IS",
    INSTANCE_NUMBER: "IS", POSITION: "DS", ORIENTATION: "DS", TEMPORAL_POSITION: "IS", SAMPLES: "US",
    PHOTOMETRIC: "CS", FRAMES: "IS", ROWS: "US", COLUMNS: "US", PIXEL_SPACING: "DS", BITS_ALLOCATED: "US",
    BITS_STORED: "US", HIGH_BIT: "US", PIXEL_REPRESENTATION: "US", RESCALE_INTERCEPT: "DS", RESCALE_SLOPE: "DS",
    IMAGES_IN_ACQUISITION: "IS", PHILIPS_BLOCK: "LO", PHILIPS_SLICES: "SL",
    LOSSY: "CS", GE_BLOCK: "LO", GE_IMAGE_KIND: "SS", SIEMENS_BLOCK: "LO", SIEMENS_MOSAIC_IMAGES: "US",
    UIH_GRID_IMAGES: "DS",
    **dict.fromkeys(CSA_BLOCKS, "LO"), **dict.fromkeys(CSA_IMAGE_HEADERS, "OB"),
}  # fmt: skip

# What a warning may be made of and nothing else: where an archive has written them as unknown (UN), they are as absent.
INFORMATIVE: Final = {IMAGES_IN_ACQUISITION, PHILIPS_BLOCK, PHILIPS_SLICES}

BINARY_NUMBERS: Final = {"US": "H", "SS": "h", "SL": "i", "FD": "d"}
PADDING = " \0"
# Character sets without escapes (PS3.3 C.12.1.1.2); absent means ASCII, which pydicom reads as Latin-1.
DECODING: Final = {"": "latin-1", "ISO_IR 6": "latin-1", "ISO_IR 100": "latin-1", "ISO_IR 192": "utf-8"}


class Elements(Protocol):
    """Values by tag. An absent or empty element has no values."""

    def texts(self, tag: int) -> tuple[str, ...]:
        """Return the values of a text element without padding."""
        ...

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Return the values of a numeric element. Raises ValueError where one is no number."""
        ...

    def raw(self, tag: int) -> bytes:
        """Return the bytes of a private binary element."""
        ...


def text(elements: Elements, tag: int) -> str:
    """Return all values of a text element as one string, values separated by a backslash as DICOM does."""
    return "\\".join(elements.texts(tag))


def number(elements: Elements, tag: int) -> float | None:
    """Return the first value of a numeric element, or None where it is absent."""
    values = elements.numbers(tag)
    return values[0] if values else None


def integer(elements: Elements, tag: int, default: int | None = None) -> int:
    """Return the only value of an integer element. Raises ValueError where it is absent or no integer."""
    value = number(elements, tag)
    if value is None:
        if default is None:
            raise ValueError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is absent")
        return default
    if not value.is_integer():
        raise ValueError(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is {value}, expected an integer")
    return int(value)


class RawElements:
    """Raw little endian values as the walker found them. Raises ValueError on what it does not decode beyond doubt."""

    def __init__(self, values: dict[int, bytes]) -> None:
        self.values = values

    def texts(self, tag: int) -> tuple[str, ...]:
        """Return the values of a text element without padding."""
        value = self.values.get(tag)
        if not value:
            return ()
        if value.isascii() and b"\x1b" not in value:
            decoded = value.decode("ascii")
        else:
            charset = self.values.get(CHARACTER_SET, b"").decode("latin-1").strip(PADDING)
            if charset not in DECODING or VR[tag] not in ("LO", "PN"):
                raise ValueError("text in a character set that only pydicom decodes")
            decoded = value.decode(DECODING[charset])
        parts = tuple([part.strip(PADDING) for part in decoded.split("\\")])
        return parts if any(parts) else ()

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Return the values of a numeric element."""
        value = self.values.get(tag)
        if not value:
            return ()
        vr = VR[tag]
        if vr == "DS":
            return tuple([float(part) for part in value.split(b"\\")]) if value.strip() else ()
        if vr == "IS":
            return tuple([float(int(part)) for part in value.split(b"\\")]) if value.strip() else ()
        code = BINARY_NUMBERS[vr]
        size = struct.calcsize(code)
        if len(value) % size:
            raise ValueError("a binary number of odd length")
        return tuple([float(number) for number in struct.unpack(f"<{len(value) // size}{code}", value)])

    def raw(self, tag: int) -> bytes:
        """Return the bytes of a private binary element."""
        return self.values.get(tag, b"")


class DatasetElements:
    """The values of a pydicom dataset, which also looks into nested datasets (``within``)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def texts(self, tag: int) -> tuple[str, ...]:
        """Return the values of a text element without padding."""
        decoded = [str(value).strip(PADDING) for value in self._values(tag)]
        return tuple(decoded) if any(decoded) else ()

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Return the values of a numeric element."""
        return tuple(float(value) for value in self._values(tag))

    def raw(self, tag: int) -> bytes:
        """Return the bytes of a private binary element."""
        value = self.dataset[tag].value if tag in self.dataset else b""
        return value if isinstance(value, bytes) else b""

    def within(self, *sequences: int) -> DatasetElements | None:
        """Return the first item of nested sequences, or None where one of them is absent or empty."""
        dataset = self.dataset
        for tag in sequences:
            items = dataset[tag].value if tag in dataset else None
            if not items:
                return None
            dataset = items[0]
        return DatasetElements(dataset)

    def _values(self, tag: int) -> list[Any]:
        from pydicom.multival import MultiValue

        if tag not in self.dataset:
            return []
        value = self.dataset[tag].value
        if value is None or value == "":
            return []
        return list(value) if isinstance(value, MultiValue | list | tuple) else [value]
