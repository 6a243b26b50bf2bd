"""Read DICOM series: find them under a path, and read one as a volume."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from decipher_rt.dicom.image import Frame, ImageFile, PixelFormat
from decipher_rt.dicom.parse import Damaged, Foreign, parse_file, wanted_tags
from decipher_rt.dicom.pixels import plane_digests, read_voxels
from decipher_rt.dicom.source import Source, Unreadable
from decipher_rt.dicom.stack import place, stack_slices
from decipher_rt.dicom.volumes import VolumeFrames, drop_duplicates, split_volumes
from decipher_rt.dicom.walk import Walker
from decipher_rt.errors import SeriesError
from decipher_rt.volume import SeriesInfo, Volume

MAGNETIC_RESONANCE: Final = "MR"
SHORTER_NAMED: Final = 10  # volumes with fewer slices than others, each in a warning of its own


@dataclass(frozen=True)
class DicomSeries:
    """The parsed files of one series, in the order in which they were found, and what lay beside them."""

    uid: str
    path: Path
    files: tuple[ImageFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """Series Description of the first file."""
        return self.files[0].description


@dataclass(frozen=True)
class Found:
    """What lies under a path: series, files that no series can be told of (whole messages), and foreign files."""

    series: tuple[DicomSeries, ...]
    damaged: tuple[Damaged, ...]
    foreign: tuple[Foreign, ...]


def find_dicom(files: Iterable[Source | Unreadable], path: Path, keep_phi: bool = False) -> Found:
    """Parse the headers of files and sort them into series. Never raises for what a file holds."""
    walker = Walker(wanted_tags(keep_phi))
    images: dict[str, list[ImageFile]] = {}
    damaged: list[Damaged] = []
    foreign: list[Foreign] = []
    empty: list[Source] = []
    for source in files:
        if isinstance(source, Unreadable):
            nowhere = Source(source.name, path, 0, b"")
            damaged.append(Damaged(nowhere, f"{source.name}: cannot be read ({source.reason})"))
            continue
        if not source.size:
            empty.append(source)
            continue
        parsed = parse_file(source, walker, keep_phi)
        if isinstance(parsed, ImageFile):
            images.setdefault(parsed.series_uid, []).append(parsed)
        elif isinstance(parsed, Damaged):
            damaged.append(parsed)
        else:
            foreign.append(parsed)
    slices = {".dcm", *(_ending(file.source) for members in images.values() for file in members)}
    for source in empty:
        if _ending(source) in slices:
            damaged.append(Damaged(source, f"{source.name}: empty, its copy was cut off"))
        else:
            foreign.append(Foreign(source, "not a DICOM file"))
    notes = _notes(damaged, foreign)
    series = tuple(DicomSeries(uid, _place(members, path), tuple(members), notes) for uid, members in images.items())
    return Found(series, tuple(damaged), tuple(foreign))


def _place(members: list[ImageFile], path: Path) -> Path:
    """Return where the files of a series lie: the one file, the archive, or the folder that holds them all."""
    if not path.is_dir():
        return path
    files = {file.source.path for file in members}
    return Path(os.path.commonpath([file.parent for file in files])) if len(files) > 1 else files.pop()


def _ending(source: Source) -> str:
    """Return what the name of a file ends with, from its last dot; a hidden file ends as no slice does."""
    name = PurePosixPath(source.name.lower())
    return name.name if name.name.startswith(".") else name.suffix


def read_dicom(
    series: DicomSeries,
    volume: int = 0,
    allow_gaps: bool = False,
    any_modality: bool = False,
    keep_phi: bool = False,
) -> Volume:
    """Read one volume of a series.

    Parameters
    ----------
    series : DicomSeries
    volume : int
        Which volume of the series, from 0: magnitude first, in the order of acquisition, then other kinds of image.
    allow_gaps : bool
        Leave missing slices empty instead of refusing.
    any_modality : bool
        Read what is not MR.
    keep_phi : bool
        Keep the patient's name, ID, birth date and sex in ``series.patient``.

    Returns
    -------
    Volume

    Raises
    ------
    SeriesError
        Where the series is not one volume beyond doubt.
    """
    troubled = [file for file in series.files if file.trouble]
    _check_modality(series.files, any_modality)
    if troubled:
        more = f" (and {len(troubled) - 1} more files of the series)" if len(troubled) > 1 else ""
        raise SeriesError(troubled[0].trouble + more)
    found = [frame for file in series.files for frame in file.frames]
    frames, warnings = drop_duplicates(found, plane_digests(found))
    warnings += _incomplete(frames)
    volumes, told = split_volumes(frames)
    warnings += told
    if not 0 <= volume < len(volumes):
        raise SeriesError(
            f"{series.path}: the series {series.description!r} has {len(volumes)} volumes, "
            f"--volume {volume} is none of them"
        )
    chosen = volumes[volume]
    if len(volumes) > 1:
        warnings.append(f"the series holds {len(volumes)} volumes; this is volume {volume} (--volume)")
    shorter = [number for number, other in enumerate(volumes) if other.absent and number != volume]
    warnings += [
        f"volume {number} has {len(volumes[number].frames)} slices, {volumes[number].absent} fewer than others"
        for number in shorter[:SHORTER_NAMED]
    ]
    if len(shorter) > SHORTER_NAMED:
        warnings.append(f"{len(shorter) - SHORTER_NAMED} more volumes have fewer slices than others")
    return _volume(series, chosen, volume, len(volumes), warnings, allow_gaps, keep_phi)


def _volume(
    series: DicomSeries,
    chosen: VolumeFrames,
    number: int,
    count: int,
    warnings: list[str],
    allow_gaps: bool,
    keep_phi: bool,
) -> Volume:
    frames = chosen.frames
    _check_format(frames)
    if chosen.absent and not allow_gaps:
        raise SeriesError(
            f"volume {number} has {len(frames)} slices, {chosen.absent} fewer than others of the series, "
            f"the first missing at {place(np.array(chosen.first_absent))} "
            "(--allow-gaps reads it, --volume takes another)"
        )
    first = frames[0]
    stack = stack_slices(
        np.array([frame.position for frame in frames]),
        np.array([frame.orientation for frame in frames]),
        np.array([frame.spacing for frame in frames]),
        first.slice_spacing or (first.thickness if len(frames) == 1 else None),
        allow_gaps,
        first.thickness,
    )
    ordered: list[Frame | None] = [frames[index] if index >= 0 else None for index in stack.order]
    voxels, histogram = read_voxels(ordered)
    warnings = [
        *warnings,
        *stack.warnings,
        *sorted({note for file in series.files for note in file.notes}),
        *series.notes,
    ]
    if first.pixels.photometric == "MONOCHROME1":
        warnings.append("bright and dark were exchanged: the images are stored as MONOCHROME1")
    head = series.files[0]
    info = SeriesInfo(
        uid=series.uid,
        path=series.path,
        manufacturer=head.manufacturer,
        description=head.description,
        files=len(series.files),
        volume_index=number,
        volumes=count,
        acquisition=first.acquisition,
        warnings=tuple(warnings),
        patient=dict(head.patient) if keep_phi else {},
    )
    rescaled = histogram is None
    slope, intercept = (1.0, 0.0) if rescaled else (first.slope, first.intercept)
    return Volume(voxels, stack.affine_lps_mm, info, slope, intercept, histogram)


def _incomplete(frames: Sequence[Frame]) -> list[str]:
    """Say where a scanner counts more images than there are: slices that are still to come leave no gap."""
    counts = {
        "images": (max(frame.stated_images for frame in frames), len(frames)),
        # Philips counts places, whatever number of echoes, times and kinds of image is at each.
        "slices": (
            max(frame.stated_slices for frame in frames),
            len({(frame.position, frame.orientation) for frame in frames}),
        ),
    }
    return [
        f"the header counts {stated} {what}, {here} are here: some may be missing, or still to come"
        for what, (stated, here) in counts.items()
        if stated > here
    ]


def _check_modality(files: Iterable[ImageFile], any_modality: bool) -> None:
    for file in files:
        if file.modality != MAGNETIC_RESONANCE and not any_modality:
            raise SeriesError(
                f"{file.source.name}: modality is {file.modality or 'not given'}, not MR "
                "(--any-modality reads it all the same)"
            )


def _check_format(frames: tuple[Frame, ...]) -> None:
    first = frames[0]
    for frame in frames:
        if frame.shape != first.shape:
            raise SeriesError(
                f"{frame.source.name}: the slice at {place(np.array(frame.position))} has {frame.shape[0]} x "
                f"{frame.shape[1]} pixels, others of the volume have {first.shape[0]} x {first.shape[1]}"
            )
        if _stored_as(frame.pixels) != _stored_as(first.pixels):
            raise SeriesError(
                f"{frame.source.name}: the slice at {place(np.array(frame.position))} stores its pixels "
                "in another type than others"
            )


def _stored_as(pixels: PixelFormat) -> tuple[object, ...]:
    """Return what planes of one volume must have in common; those of MONOCHROME1 are inverted within their bits."""
    inverted_within = pixels.bits_stored if pixels.photometric == "MONOCHROME1" else None
    return pixels.bits_allocated, pixels.signed, pixels.photometric, pixels.floating, inverted_within


def _notes(damaged: list[Damaged], foreign: list[Foreign]) -> tuple[str, ...]:
    notes = []
    for what, members in groupby(sorted(foreign, key=lambda f: f.what), key=lambda f: f.what):
        sources = [member.source.name for member in members]
        notes.append(f"{len(sources)} files ignored: {what} (first: {sources[0]})")
    if damaged:
        notes.append(f"{len(damaged)} DICOM files could not be read and may belong here (first: {damaged[0].trouble})")
    return tuple(notes)
