"""Find the series under a path and read them: DICOM (files, folders, ``.zip``) and NIfTI.

for series in find_series(Path("study")):
    volume = read_series(series)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from decipher_rt.errors import SeriesError
from decipher_rt.volume import Volume

if TYPE_CHECKING:
    from decipher_rt.dicom.parse import Foreign
    from decipher_rt.dicom.read import DicomSeries, Found
    from decipher_rt.dicom.source import Source, Unreadable
    from decipher_rt.nifti import NiftiFile


@dataclass(frozen=True)
class ReadOptions:
    """What a caller allows.

    Attributes
    ----------
    volume : int
        Which volume of a series that holds several, from 0.
    allow_gaps : bool
        Leave missing slices empty instead of refusing the series.
    any_modality : bool
        Read what is not MR.
    keep_phi : bool
        Keep the patient's name, ID, birth date and sex; they leave the files only where both `find_series` and
        `read_series` are told so.
    """

    volume: int = 0
    allow_gaps: bool = False
    any_modality: bool = False
    keep_phi: bool = False


@dataclass(frozen=True)
class Series:
    """One series under a path, its headers parsed, its pixels not yet read.

    Attributes
    ----------
    uid : str
        Series Instance UID; empty for a file that cannot be read as far as that.
    path : Path
        Where it lies: its file, archive, or the folder that holds all its files.
    description : str
    files : int
    content : DicomSeries, NiftiFile or str
        What `read_series` reads; a string is the message of the error that it raises.
    """

    uid: str
    path: Path
    description: str
    files: int
    content: DicomSeries | NiftiFile | str


def find_series(path: Path, options: ReadOptions = ReadOptions()) -> list[Series]:
    """Find every series under a file, a folder (and its folders) or a ``.zip``.

    One series that cannot be read does not hide the others: its trouble is raised by `read_series`. Damaged DICOM
    files that name no series are one entry together.

    Parameters
    ----------
    path : Path
    options : ReadOptions

    Returns
    -------
    list of Series
        In the order in which the files were found (by name); DICOM first.

    Raises
    ------
    SeriesError
        Where the path does not exist, is not safe to read, or holds no series.
    """
    from decipher_rt.dicom.source import sources

    path = Path(path)
    series, found = _series_among(sources(path), path, options)
    if found.damaged:
        first, more = found.damaged[0], len(found.damaged) - 1
        trouble = first.trouble + (f" (and {more} more damaged files)" if more else "")
        series.append(Series("", path, first.source.name, 1 + more, trouble))
    if not series:
        raise SeriesError(_nothing(path, found.foreign))
    return series


def find_among_files(files: Sequence[Path], options: ReadOptions = ReadOptions()) -> list[Series]:
    """Find every series among DICOM files that were named one by one, such as the slices of one.

    Parameters
    ----------
    files : sequence of Path
    options : ReadOptions

    Returns
    -------
    list of Series
        As of one folder; a file that cannot be used is an entry of its own.
    """
    from decipher_rt.dicom.source import sources

    if any(file.is_absolute() for file in files):
        files = [file.absolute() for file in files]
    listed: list[Source | Unreadable] = []
    refused: list[Series] = []
    for file in dict.fromkeys(files):
        try:
            listed.extend(sources(file))
        except SeriesError as error:
            refused.append(Series("", file, file.name, 1, str(error)))
    folder = Path(os.path.commonpath([file.parent for file in files]))
    series, found = _series_among(listed, folder, options)
    troubles = [(one.source, one.trouble) for one in found.damaged]
    troubles += [(one.source, _nothing(one.source.path, [one])) for one in found.foreign]
    refused += [Series("", source.path, source.name, 1, trouble) for source, trouble in troubles]
    return [*series, *refused]


def _series_among(
    listed: Iterable[Source | Unreadable], path: Path, options: ReadOptions
) -> tuple[list[Series], Found]:
    """Return the series of files under a path, and what is none."""
    from decipher_rt.dicom.parse import Foreign
    from decipher_rt.dicom.read import find_dicom
    from decipher_rt.dicom.source import Source

    files: list[Source | Unreadable] = []
    niftis: list[Source] = []
    for source in listed:
        if PurePosixPath(source.name).name.startswith("._"):  # what macOS puts beside each file of an archive
            continue
        if isinstance(source, Source) and is_nifti(source.name):
            niftis.append(source)
        else:
            files.append(source)
    found = find_dicom(files, path, options.keep_phi)
    series = [Series(one.uid, one.path, one.description, len(one.files), one) for one in found.series]
    label_maps = []
    for source in niftis:
        nifti = _find_nifti(source, named=source.path == path and source.data is None)
        if nifti is None:
            label_maps.append(Foreign(source, "a label map"))
        else:
            series.append(nifti)
    return series, replace(found, foreign=(*found.foreign, *label_maps))


def is_nifti(name: str) -> bool:
    """Whether a file of this name is read as NIfTI."""
    return name.lower().endswith((".nii", ".nii.gz"))


def find_only_series(path: Path, advice: str, options: ReadOptions = ReadOptions()) -> Series:
    """Find the one series under a path; ``advice`` is what to do where there are several.

    Raises
    ------
    SeriesError
        As `find_series`; where there are several; and where a file beside the one series cannot be read, and may
        belong to it.
    """
    found = find_series(path, options)
    troubles = [one.content for one in found if isinstance(one.content, str)]
    if len(found) > 1 and len(found) - len(troubles) == 1:
        raise SeriesError(f"{path}: {troubles[0]}")
    if len(found) > 1:
        raise SeriesError(f"{path}: holds {len(found)} series; {advice}")
    return found[0]


def read_series(series: Series, options: ReadOptions = ReadOptions()) -> Volume:
    """Read one volume of a series.

    Parameters
    ----------
    series : Series
        From `find_series`.
    options : ReadOptions

    Returns
    -------
    Volume

    Raises
    ------
    SeriesError
        In one line: what is wrong, in which file or at which position, and which option goes on where one does.
    """
    from decipher_rt.dicom.read import DicomSeries, read_dicom

    content = series.content
    if isinstance(content, str):
        raise SeriesError(content)
    if isinstance(content, DicomSeries):
        return read_dicom(content, options.volume, options.allow_gaps, options.any_modality, options.keep_phi)
    from decipher_rt.nifti import read_nifti

    return read_nifti(content, options.volume)


def _find_nifti(source: Source, *, named: bool) -> Series | None:
    """Return the series of a NIfTI file, None for a label map that was not named: a result of an earlier run."""
    from decipher_rt.nifti import open_nifti

    try:
        nifti = open_nifti(source)
        if nifti.is_label_map and not named:
            return None
        return Series(nifti.uid, source.path, nifti.description, 1, nifti)
    except SeriesError as error:
        return Series("", source.path, source.name, 1, str(error))


def _nothing(path: Path, foreign: Sequence[Foreign]) -> str:
    if not foreign:
        return f"{path}: holds no files"
    first = foreign[0]
    if first.source.path == path and first.source.data is None:
        return f"{path}: {first.what}, nor NIfTI (.nii, .nii.gz)" if "not a" in first.what else f"{path}: {first.what}"
    return f"{path}: no series with images in {len(foreign)} files (first: {first.source.name}, {first.what})"
