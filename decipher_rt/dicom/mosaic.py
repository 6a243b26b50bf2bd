"""Siemens mosaics: all slices of a volume tiled into one image, and the CSA header that says how they lie.

The layout of the CSA header is documented by its readers (nibabel's "Siemens CSA header", dcm2niix); Siemens publishes
none. Three entries are taken from it and nothing else. The header is private data of a file that may be hostile: every
length is checked before it is used.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Final

from decipher_rt.dicom import elements as tags
from decipher_rt.dicom.elements import Elements
from decipher_rt.dicom.image import Frame, NotAnImageError

CSA_MAGIC: Final = b"SV10"
# A CSA image header has about 100 entries of a few items; these limits only keep loops short.
MAX_ENTRIES: Final = 1000
MAX_ITEMS: Final = 1000
MAX_ITEM_BYTES: Final = 1 << 16
# The slice direction of the CSA header and the normal of the image must be parallel this well (cosine).
NORMAL_TOLERANCE: Final = 1e-3
EXPORT: Final = "export it as Enhanced MR"

_ENTRY = struct.Struct("<64si4siii")
_ITEM = struct.Struct("<4i")


def is_mosaic(image_type: tuple[str, ...]) -> bool:
    """Tell whether Image Type calls the image a mosaic."""
    return "MOSAIC" in image_type


def require_no_grid(elements: Elements) -> None:
    """Raise NotAnImageError for a grid image of United Imaging, whose slices only its private sequence places."""
    if tags.text(elements, tags.MANUFACTURER).upper().startswith("UIH"):
        slices = tags.number(elements, tags.UIH_GRID_IMAGES) or 1
        if slices > 1:
            raise NotAnImageError(f"is a grid of {slices:g} slices (UIH), which is not read; {EXPORT}")


def require_no_enhanced_mosaic(elements: Elements) -> None:
    """Raise NotAnImageError for one image of an enhanced object that holds slices side by side, as navigators do."""
    if tags.number(elements, tags.FRAMES) == 1 and is_mosaic(elements.texts(tags.IMAGE_TYPE)):
        raise NotAnImageError(
            "is a mosaic in an enhanced object, which is not read; export it with a frame for each slice"
        )


def mosaic_frames(elements: Elements, image: Frame) -> tuple[Frame, ...]:
    """Cut a mosaic into the frames of its slices, in the order in which they are tiled.

    Image Position of a mosaic is where an image of that many pixels around the first slice's centre would begin, so the
    first slice begins half of the surplus further along rows and columns.

    Raises
    ------
    NotAnImageError
        Where the header does not say how many slices there are and where they lie.
    """
    names = ("NumberOfImagesInMosaic", "SliceNormalVector", *(() if image.slice_spacing else ("SpacingBetweenSlices",)))
    csa = _csa_values(_csa_image_header(elements), names)
    slices = _slices(elements, csa.get("NumberOfImagesInMosaic", []))
    normal = csa.get("SliceNormalVector", [])
    rows, columns = image.pixels.rows, image.pixels.columns
    tiles = math.ceil(math.sqrt(slices))
    if rows % tiles or columns % tiles:
        raise NotAnImageError(
            f"is a mosaic of {slices} slices, but {rows} x {columns} pixels do not divide into {tiles} x {tiles}"
        )
    if len(normal) != 3 or not all(map(math.isfinite, normal)):
        raise NotAnImageError(f"is a Siemens mosaic without the slice direction (CSA SliceNormalVector); {EXPORT}")
    across, down = image.orientation[:3], image.orientation[3:]
    cross = (
        across[1] * down[2] - across[2] * down[1],
        across[2] * down[0] - across[0] * down[2],
        across[0] * down[1] - across[1] * down[0],
    )
    if abs(abs(sum(a * b for a, b in zip(cross, normal, strict=True))) - 1.0) > NORMAL_TOLERANCE:
        raise NotAnImageError("is a Siemens mosaic whose slice direction (CSA) is not the normal of the image")
    spacing = image.slice_spacing or next(iter(csa.get("SpacingBetweenSlices", [])), None)
    if not spacing or not math.isfinite(spacing) or spacing <= 0:
        raise NotAnImageError("is a Siemens mosaic without Spacing Between Slices")
    height, width = rows // tiles, columns // tiles
    right = (columns - width) / 2 * image.spacing[1]
    below = (rows - height) / 2 * image.spacing[0]
    first = [p + right * a + below * d for p, a, d in zip(image.position, across, down, strict=True)]
    return tuple(
        replace(
            image,
            position=(
                first[0] + number * spacing * normal[0],
                first[1] + number * spacing * normal[1],
                first[2] + number * spacing * normal[2],
            ),
            tile=(number // tiles * height, number % tiles * width, height, width),
            slice_spacing=spacing,
        )
        for number in range(slices)
    )


def _slices(elements: Elements, in_csa: list[float]) -> int:
    said = [int(in_csa[0])] if in_csa else []
    if tags.text(elements, tags.SIEMENS_BLOCK) == "SIEMENS MR HEADER":
        number = tags.number(elements, tags.SIEMENS_MOSAIC_IMAGES)
        said += [int(number)] if number is not None else []
    if not said:
        raise NotAnImageError(
            f"is a Siemens mosaic that does not say how many slices it holds (NumberOfImagesInMosaic); {EXPORT}"
        )
    if len(set(said)) > 1 or not 1 <= said[0] <= MAX_ITEMS:
        raise NotAnImageError(f"is a Siemens mosaic of {' or '.join(map(str, said))} slices")
    return said[0]


def _csa_image_header(elements: Elements) -> bytes:
    for creator, header in zip(tags.CSA_BLOCKS, tags.CSA_IMAGE_HEADERS, strict=True):
        if tags.text(elements, creator) == "SIEMENS CSA HEADER":
            return elements.raw(header)
    return b""


def _csa_values(header: bytes, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Read the numbers of some entries. Raises NotAnImageError where the header does not hold together."""
    if not header:
        return {}
    if header[:4] != CSA_MAGIC:
        raise NotAnImageError("is a Siemens mosaic with a CSA header that is not of the layout SV10")
    found: dict[str, list[float]] = {}
    try:
        (entries,) = struct.unpack_from("<I", header, 8)
        position = 16
        for _ in range(min(entries, MAX_ENTRIES)):
            name_field, _, _, _, items, _ = _ENTRY.unpack_from(header, position)
            position += _ENTRY.size
            name = name_field.split(b"\0", 1)[0].decode("latin-1")
            if not 0 <= items <= MAX_ITEMS:
                raise NotAnImageError("is a Siemens mosaic with a damaged CSA header")
            values = []
            for _ in range(items):
                _, length, _, _ = _ITEM.unpack_from(header, position)
                position += _ITEM.size
                if not 0 <= length <= MAX_ITEM_BYTES or position + length > len(header):
                    raise NotAnImageError("is a Siemens mosaic with a damaged CSA header")
                values.append(header[position : position + length].split(b"\0", 1)[0].strip())
                position += (length + 3) // 4 * 4
            if name in names:
                found[name] = [float(value) for value in values if value]
            if len(found) == len(names):
                break
    except (struct.error, ValueError) as error:
        if isinstance(error, NotAnImageError):
            raise
        raise NotAnImageError("is a Siemens mosaic with a damaged CSA header") from None
    return found
