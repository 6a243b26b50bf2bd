"""Enhanced multi-frame objects: functional groups to frames (PS3.3 C.7.6.16, C.8.13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from decipher_rt.dicom import elements as tags
from decipher_rt.dicom.elements import DatasetElements
from decipher_rt.dicom.image import Frame, NotAnImageError, PixelFormat, VolumeKeys, image_kind, plane, rescale
from decipher_rt.dicom.source import Source
from decipher_rt.volume import Acquisition

SHARED_GROUPS: Final = 0x52009229
FRAME_GROUPS: Final = 0x52009230

PLANE_POSITION: Final = 0x00209113
PLANE_ORIENTATION: Final = 0x00209116
PIXEL_MEASURES: Final = 0x00289110
PIXEL_VALUE_TRANSFORMATION: Final = 0x00289145
FRAME_CONTENT: Final = 0x00209111
FRAME_TYPES: Final = (0x00189226, 0x00189329, 0x00189751)  # MR, CT, PET
MR_ECHO: Final = 0x00189114
MR_DIFFUSION: Final = 0x00189117
MR_TIMING: Final = 0x00189112
MR_MODIFIER: Final = 0x00189115
CARDIAC_SYNCHRONIZATION: Final = 0x00189118
TEMPORAL_POSITION_MACRO: Final = 0x00209310
FRAME_ANATOMY: Final = 0x00209071
ANATOMIC_REGION: Final = 0x00082218
CODE_MEANING: Final = 0x00080104

FRAME_TYPE: Final = 0x00089007
STACK_ID: Final = 0x00209056
TEMPORAL_POSITION_INDEX: Final = 0x00209128
FRAME_ACQUISITION_NUMBER: Final = 0x00209156
TEMPORAL_POSITION_OFFSET: Final = 0x0020930D
EFFECTIVE_ECHO_TIME: Final = 0x00189082
INVERSION_TIMES: Final = 0x00189079
TRIGGER_DELAY: Final = 0x00209153
GRADIENT_DIRECTIONS: Final = 0x00189076
GRADIENT_DIRECTION: Final = 0x00189089
ECHO_PULSE_SEQUENCE: Final = 0x00189008
ECHO_PLANAR: Final = 0x00189018

# Enhanced MR names the sequence in words (PS3.3 C.8.13.4); classic MR in letters (C.8.3.1.1.2). One name for one thing.
SEQUENCE_LETTERS: Final = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE\\GR"}

Groups = Callable[..., DatasetElements | None]


def enhanced_frames(
    file: DatasetElements, source: Source, pixels: PixelFormat, offset: int | None
) -> tuple[Frame, ...]:
    """Build the frames of an enhanced multi-frame image.

    Raises
    ------
    NotAnImageError, ValueError
        Where a frame does not say where it lies, or the number of frames is not what the groups describe.
    """
    count = tags.integer(file, tags.FRAMES, 1)
    groups = file.dataset[FRAME_GROUPS].value if FRAME_GROUPS in file.dataset else []
    if count < 1:
        raise NotAnImageError(f"has {count} frames")
    if len(groups) != count:
        raise NotAnImageError(f"has {count} frames, and functional groups for {len(groups)}")
    shared = file.within(SHARED_GROUPS)
    sop_uid = tags.text(file, tags.SOP_INSTANCE_UID)
    instance = int(tags.number(file, tags.INSTANCE_NUMBER) or 0)
    frames = []
    for index, group in enumerate(groups):
        own = DatasetElements(group)

        def macro(*sequences: int, own: DatasetElements = own) -> DatasetElements | None:
            return own.within(*sequences) or (shared.within(*sequences) if shared else None)

        try:
            frames.append(_frame(file, macro, source, sop_uid, pixels, index, offset, instance))
        except NotAnImageError as error:
            raise NotAnImageError(f"frame {index + 1} {error}") from None
    return tuple(frames)


def _frame(
    file: DatasetElements,
    macro: Groups,
    source: Source,
    sop_uid: str,
    pixels: PixelFormat,
    index: int,
    offset: int | None,
    instance: int,
) -> Frame:
    measures = macro(PIXEL_MEASURES)
    position, orientation, spacing = plane(
        _numbers(macro(PLANE_POSITION), tags.POSITION),
        _numbers(macro(PLANE_ORIENTATION), tags.ORIENTATION),
        _numbers(measures, tags.PIXEL_SPACING),
    )
    transformation = macro(PIXEL_VALUE_TRANSFORMATION)
    slope, intercept = rescale(transformation or file)
    content = macro(FRAME_CONTENT)
    acquisition, component = _acquisition(file, macro)
    diffusion = macro(MR_DIFFUSION)
    temporal = _number(content, TEMPORAL_POSITION_INDEX)
    if temporal is None:
        temporal = _number(macro(TEMPORAL_POSITION_MACRO), TEMPORAL_POSITION_OFFSET)
    return Frame(
        source,
        sop_uid,
        pixels,
        index,
        None if offset is None else offset + index * pixels.frame_bytes,
        position,
        orientation,
        spacing,
        slope,
        intercept,
        image_kind(acquisition.image_type, component),
        VolumeKeys(
            temporal_position=temporal,
            echo_time=acquisition.echo_time_ms,
            b_value=_number(diffusion, tags.B_VALUE),
            gradient=_numbers(macro(MR_DIFFUSION, GRADIENT_DIRECTIONS), GRADIENT_DIRECTION) or None,
            inversion_time=acquisition.inversion_time_ms,
            flip_angle=acquisition.flip_angle_deg,
            trigger_time=_number(macro(CARDIAC_SYNCHRONIZATION), TRIGGER_DELAY),
            image_type=acquisition.image_type,
            acquisition_number=_number(content, FRAME_ACQUISITION_NUMBER),
        ),
        (instance, index),
        acquisition,
        _number(measures, tags.SLICE_THICKNESS),
        _number(measures, tags.SPACING_BETWEEN_SLICES) or tags.number(file, tags.SPACING_BETWEEN_SLICES),
        tags.text(content, STACK_ID) if content else "",
    )


def _acquisition(file: DatasetElements, macro: Groups) -> tuple[Acquisition, str]:
    """Return how a frame was made, and its Complex Image Component."""
    image_type = file.texts(tags.IMAGE_TYPE)
    component = tags.text(file, tags.COMPLEX_IMAGE_COMPONENT)
    for tag in FRAME_TYPES:
        frame_type = macro(tag)
        if frame_type:
            image_type = frame_type.texts(FRAME_TYPE) or image_type
            component = tags.text(frame_type, tags.COMPLEX_IMAGE_COMPONENT) or component
    timing, modifier = macro(MR_TIMING), macro(MR_MODIFIER)
    anatomy = macro(FRAME_ANATOMY, ANATOMIC_REGION)
    body_part = tags.text(file, tags.BODY_PART) or (tags.text(anatomy, CODE_MEANING).upper() if anatomy else "")
    letters = [SEQUENCE_LETTERS[word] for word in file.texts(ECHO_PULSE_SEQUENCE) if word in SEQUENCE_LETTERS]
    if tags.text(file, ECHO_PLANAR) == "YES":
        letters.insert(0, "EP")
    acquisition = Acquisition(
        modality=tags.text(file, tags.MODALITY) or None,
        body_part=body_part or None,
        field_strength_t=tags.number(file, tags.FIELD_STRENGTH),
        repetition_time_ms=_number(timing, tags.REPETITION_TIME),
        echo_time_ms=_number(macro(MR_ECHO), EFFECTIVE_ECHO_TIME),
        inversion_time_ms=_number(modifier, INVERSION_TIMES),
        flip_angle_deg=_number(timing, tags.FLIP_ANGLE),
        scanning_sequence="\\".join(letters) or None,
        image_type=image_type,
    )
    return acquisition, component


def _numbers(elements: DatasetElements | None, tag: int) -> tuple[float, ...]:
    return elements.numbers(tag) if elements else ()


def _number(elements: DatasetElements | None, tag: int) -> float | None:
    return tags.number(elements, tag) if elements else None
