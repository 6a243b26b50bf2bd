"""BIDS folders (bids-specification 1.10): anatomical images with the labels of ``participants.tsv``.

``sub-*/[ses-*/]anat/*_<suffix>.nii[.gz]`` are the series; the suffix gives the label ``sequence``. Every column of
``participants.tsv`` is a label of the participant's series, but for ``split``, where the data say which it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from ..samples import SPLITS, Split
from .example import Facts, Label
from .rows import UNKNOWN, Row, SourceError, one_error, typed_columns

IMAGE = re.compile(r"(?P<subject>sub-[A-Za-z0-9+]+)_(?:.+_)?(?P<suffix>[A-Za-z0-9]+)\.nii(?:\.gz)?")
PARTICIPANT = re.compile(r"sub-[A-Za-z0-9+]+")
DESCRIPTION = "dataset_description.json"
NO_MAGNITUDE = re.compile(r"_part-(phase|real|imag)_")  # of the contrast that the suffix names, and none of its looks


def left_out(folder: Path, sequences: Mapping[str, str]) -> Counter[str]:
    """Count the anatomical images of a BIDS folder by those suffixes that are not in ``sequences``."""
    return Counter(name["suffix"] for _, name in _images(folder) if name["suffix"] not in sequences)


def read_bids(folder: Path, sequences: Mapping[str, str]) -> list[Row]:
    """List the anatomical images of a BIDS folder.

    Parameters
    ----------
    folder : Path
    sequences : mapping
        Label ``sequence`` by suffix; images with another suffix are left out.

    Raises
    ------
    SourceError
        Naming the file, line and column of what is broken.
    """
    if not (folder / DESCRIPTION).is_file():
        raise SourceError(f"{folder}: no {DESCRIPTION} in it; give the root of a BIDS dataset")
    images = [(path, name) for path, name in _images(folder) if name["suffix"] in sequences]
    subjects = {path: path.relative_to(folder).parts[0] for path, _ in images}
    labels, splits = _read_participants(folder / "participants.tsv", set(subjects.values()))
    rows = []
    for path, name in images:
        subject = subjects[path]
        if name["subject"] != subject:
            raise SourceError(f"{path}: lies in the folder of {subject}, but its name says otherwise")
        if not path.exists():
            raise SourceError(f"{path}: a link to nothing; fetch what it stands for (datalad get, git annex get)")
        known = {**labels.get(subject, {}), "sequence": sequences[name["suffix"]]}
        rows.append(Row(str(path), path, 0, splits.get(subject), Facts(labels=known, patient=subject)))
    if not rows:
        raise SourceError(
            f"{folder}: no sub-*/[ses-*/]anat/*_SUFFIX.nii[.gz] with one of the suffixes {', '.join(sequences)}; "
            "source.sequences says which are read"
        )
    return rows


def name_of(folder: Path) -> str:
    """Return the name of the data set, as its description gives it; nothing where that has none.

    Raises
    ------
    SourceError
    """
    path = folder / DESCRIPTION
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({str(error)[:80]}); mend it, or give source.cohort") from None
    return str(described.get("Name") or "") if isinstance(described, dict) else ""


def _images(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    """Return the anatomical images, magnitude alone, each with the parts of its name."""
    # Not "**", which passes over folders that are links.
    listed = sorted([*folder.glob("sub-*/anat/*.nii*"), *folder.glob("sub-*/ses-*/anat/*.nii*")])
    found = ((path, IMAGE.fullmatch(path.name)) for path in listed)
    return [(path, name) for path, name in found if name and not NO_MAGNITUDE.search(path.name)]


def _read_participants(path: Path, imaged: Collection[str]) -> tuple[dict[str, dict[str, Label]], dict[str, Split]]:
    """Return labels and splits of those who were ``imaged``; none where there is no such file.

    What is listed of others makes no number a text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except FileNotFoundError:
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read ({type(error).__name__})") from None
    header = [name.strip() for name in lines[0].split("\t")] if lines[0] else []
    if "participant_id" not in header or len(set(header)) < len(header):
        raise SourceError(f"{path}, line 1: expected columns with different names, and participant_id among them")
    errors: list[str] = []
    listed: dict[str, tuple[str, dict[str, str]]] = {}
    for line, text in enumerate(lines[1:], start=2):
        if not text.strip():
            continue
        place, cells = f"{path}, line {line}", text.split("\t")
        if len(cells) != len(header):
            errors.append(f"{place}: {len(cells)} columns, expected {len(header)} ({', '.join(header)})")
            continue
        row = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
        subject = row.pop("participant_id")
        split = row.get("split", "")
        if not PARTICIPANT.fullmatch(subject):
            errors.append(f"{place}, column participant_id: expected sub- with letters and digits")
        elif subject in listed:
            errors.append(f"{place}, column participant_id: also in {listed[subject][0]}")
        elif split.lower() not in (*UNKNOWN, *SPLITS):
            errors.append(f"{place}, column split: {split!r}, expected one of {', '.join(SPLITS)}")
        else:
            listed[subject] = (place, row)
    listed = {subject: told for subject, told in listed.items() if subject in imaged}
    without_split = ((p, {c: t for c, t in row.items() if c != "split"}) for p, row in listed.values())
    labels = dict(zip(listed, typed_columns(without_split, errors), strict=True))
    if errors:
        raise one_error(errors)
    by_name = {str(split): split for split in SPLITS}
    splits = {s: by_name[t] for s, (_, row) in listed.items() if (t := row.get("split", "").lower()) in by_name}
    return labels, splits
