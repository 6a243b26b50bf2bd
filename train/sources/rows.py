"""Rows: the series that a manifest or a BIDS folder lists, checked, and shared out among the splits by patient."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from decipher_rt.dicom.source import Source, sources
from decipher_rt.errors import DecipherError

from ..config import LARGEST
from ..samples import SPLITS, Split
from .example import Facts, Label

# Cells that say nothing, in any case: BIDS's, JSON's, and what spreadsheets and pandas write. "none" is a finding.
UNKNOWN = ("", "n/a", "null", "na", "nan")
MOST_NAMED = 10  # places in a message
# A full stop after one of these ends no sentence.
ABBREVIATIONS = frozenset(
    ["e.g", "i.e", "approx", "ca", "cf", "dr", "fig", "incl", "max", "min", "no", "prof", "st", "vs"]
)


class SourceError(DecipherError):
    """A manifest, a BIDS folder or a series in it that cannot be used. The message names file, line and column."""


@dataclass(frozen=True)
class Files:
    """SHA-256 of the names and sizes of files, and in ``state`` of their times of change as well."""

    named: str
    state: str


@dataclass(frozen=True)
class Row:
    """One series that is listed.

    Attributes
    ----------
    place : where it is listed, for messages: "cohort.csv, line 12"
    path : of the series: a file, a folder or a ``.zip``
    volume : which volume of it, from 0
    split : as listed; ``None`` where nothing is said
    facts : what is known of it
    mask : label image on any grid of the same patient space, or None
    """

    place: str
    path: Path
    volume: int
    split: Split | None
    facts: Facts
    mask: Path | None = None

    @cached_property
    def files(self) -> Files:
        """Return what the files of series and mask are, those behind links too: looked at once."""
        found = [file for path in (self.path, self.mask) if path for file in _files(path)]
        names = [[name, stat.st_size] for name, stat in found]
        times = [stat.st_mtime_ns for _, stat in found]
        named, state = (hashlib.sha256(json.dumps(x).encode()).hexdigest() for x in (names, [names, times]))
        return Files(named, state)


def _files(path: Path) -> list[tuple[str, os.stat_result]]:
    if path.is_dir():
        return [(file.name, file.path.stat()) for file in sources(path) if isinstance(file, Source)]
    return [(path.name, path.stat())]


def share_out(rows: Sequence[Row], seed: int, shares: tuple[float, float, float]) -> dict[Split, list[Row]]:
    """Put every row into a split; all rows of a patient into the same.

    A patient without a listed split goes where a hash of seed and key says, whoever else is listed: a cohort that grows
    moves nobody. Within a split rows are in the order of a hash of seed, patient, file and volume, and not in that of
    the list, whose first may all be of one site.

    Raises
    ------
    SourceError
        Where a patient is listed in two splits.
    """
    listed: dict[str, Row] = {}
    for row in rows:
        if row.split is None:
            continue
        first = listed.setdefault(row.facts.patient, row)
        if first.split != row.split:
            raise SourceError(
                f"{row.place}, column split: {row.split!r}, but {first.place} puts the same patient in "
                f"{first.split!r}; a patient belongs to one split"
            )
    found: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    names = names_below(row.path for row in rows)
    for row in sorted(rows, key=lambda row: _digest(seed, row.facts.patient, names[row.path], row.volume)):
        patient = row.facts.patient
        of_patient = listed[patient].split if patient in listed else None
        found[of_patient or _draw_split(patient, seed, shares)].append(row)
    return found


def _draw_split(patient: str, seed: int, shares: tuple[float, float, float]) -> Split:
    place = int.from_bytes(_digest(seed, patient)[:8], "big") / 2**64
    return "train" if place < shares[0] else "validation" if place < shares[0] + shares[1] else "test"


def names_below(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the names of files below the folder that all of them lie in."""
    whole = {path: path.absolute() for path in paths}  # links are not followed: it is what they are called
    root = os.path.commonpath([path.parent for path in whole.values()]) if whole else ""
    return {path: os.path.relpath(there, root) for path, there in whole.items()}


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()


def by_place(error: str) -> list[str | int]:
    """Return what errors are sorted by, so that line 9 comes before line 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", error)]


def one_error(errors: Sequence[str], what: str = "broken rows") -> SourceError:
    """Return one error for all broken rows: the first in words, the others by number and, some of them, by place."""
    if len(errors) == 1:
        return SourceError(errors[0])
    file, comma, _ = errors[0].partition(", line ")
    places = [error.partition(": ")[0].removeprefix(file if comma else "").strip(", ") for error in errors[1:]]
    more = ", ..." if len(places) > MOST_NAMED else ""
    return SourceError(f"{errors[0]} (and {len(places)} more {what}: {'; '.join(places[:MOST_NAMED])}{more})")


def typed_columns(cells: Iterable[tuple[str, Mapping[str, str]]], errors: list[str]) -> list[dict[str, Label]]:
    """Turn text cells into labels: a column that holds numbers only becomes numbers; unknown cells are left out.

    Parameters
    ----------
    cells : iterable of (place, cells by column)
    errors : list of str
        Gets one for each number that is not finite in float32.
    """
    rows = [(place, {c: t.strip() for c, t in row.items() if t.strip().lower() not in UNKNOWN}) for place, row in cells]
    columns: dict[str, bool] = {}
    for _, row in rows:
        for column, text in row.items():
            columns[column] = columns.get(column, True) and number(text) is not None
    labels: list[dict[str, Label]] = []
    for place, row in rows:
        found: dict[str, Label] = {}
        for column, text in row.items():
            value = number(text) if columns[column] else None
            if value is not None and not abs(value) <= LARGEST:
                errors.append(f"{place}, column {column}: {text!r}, expected a finite number, or nothing where unknown")
                continue
            found[column] = text if value is None else value
        labels.append(found)
    return labels


def number(text: str) -> float | None:
    """Return the number that a cell holds; None where it holds none."""
    try:
        return float(text)
    except ValueError:
        return None


def sentences(text: str) -> tuple[str, ...]:
    """Cut a report into sentences: at line ends, and after ``.``, ``!`` or ``?`` before a capital letter."""
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for mark in re.finditer(r"[.!?][\"')\]]*\s+", line):
            before = line[start : mark.start()].rsplit(maxsplit=1)
            word = before[-1].lower().lstrip("([\"'") if before else ""
            if line[mark.end() : mark.end() + 1].isupper() and word not in ABBREVIATIONS and not word.isdigit():
                found.append(line[start : mark.end()].strip())
                start = mark.end()
        found.append(line[start:].strip())
    return tuple(sentence for sentence in found if any(c.isalpha() for c in sentence))
