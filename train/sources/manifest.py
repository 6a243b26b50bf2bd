"""Manifests: series listed in a CSV or JSONL file, one a row.

========= ==========================================================================================================
path      DICOM file, folder or ``.zip``, or NIfTI file; relative to the manifest's folder
patient   pseudonymous key; all series of a patient belong to one split
split     ``train``, ``validation`` or ``test``; drawn by patient where it is empty
report    text; in JSONL also a list of sentences
region    body region or organ
volume    which volume of the series, from 0; 0 where it is empty
mask      NIfTI label image with whole numbers 0 to 255 in the patient space of the series, on any grid of its own
boxes     JSON: a list of findings, ``{"center_lps_mm": [x, y, z], "size_mm": [s, a, r], "label": "plaque"}``, sizes
          along S, A and R; ``[]`` where somebody looked and found none
labels    JSONL: an object of texts and numbers. CSV: every other column is a label; a column that holds numbers only
          is numeric
========= ==========================================================================================================

``path`` and ``patient`` are required. What is empty, ``n/a``, ``na``, ``nan`` or ``null`` is unknown.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import LARGEST
from ..samples import SPLITS
from .example import Box, Facts, Label
from .rows import UNKNOWN, Row, SourceError, one_error, sentences, typed_columns

COLUMNS = ("path", "patient", "split", "report", "region", "volume", "mask", "boxes")
REQUIRED = ("path", "patient")
BOX_KEYS = {"center_lps_mm", "size_mm", "label"}
MOST_DIGITS = 9  # of a volume's number
FARTHEST_MM = 1e5  # of a coordinate; beyond it is a slip of units, infinity or nothing at all


def read_manifest(path: Path) -> list[Row]:
    """Read and check every row of a manifest.

    Raises
    ------
    SourceError
        Naming file, line and column of the first broken row, and how many more there are.
    """
    errors: list[str] = []
    read = _read_jsonl if path.suffix.lower() in (".jsonl", ".ndjson") else _read_csv
    try:
        listed = read(path, errors)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: cannot be read ({type(error).__name__}); give a CSV or JSONL file in UTF-8"
        ) from None
    rows: list[Row] = []
    seen: dict[tuple[Path, int], str] = {}
    for place, cells, labels in listed:
        try:
            row = _row(path, place, cells, labels)
        except SourceError as error:
            errors.append(str(error))
            continue
        if (first := seen.setdefault((row.path.resolve(), row.volume), place)) != place:
            errors.append(f"{place}, column path: the same series as {first}; list it once")
        rows.append(row)
    if errors:
        raise one_error(errors)
    if not rows:
        raise SourceError(f"{path}: lists no series")
    return rows


Listed = list[tuple[str, dict[str, Any], dict[str, Label]]]


def _read_csv(path: Path, errors: list[str]) -> Listed:
    """Return place, the manifest's own columns and labels of every row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        rows = list(_csv_rows(path, reader))
    if not rows:
        raise SourceError(f"{path}: is empty, expected a line with the names of the columns")
    header = [name.strip() for name in rows[0][1]]
    for column in REQUIRED:
        if column not in header:
            raise SourceError(f"{path}, line 1: no column {column}; with commas between, there are {', '.join(header)}")
    for place, name in enumerate(header, start=1):
        if not name or header.count(name) > 1:
            raise SourceError(f"{path}, line 1: column {place} is {name!r}, expected a name that no other column has")
    listed: list[tuple[str, dict[str, str]]] = []
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            errors.append(
                f"{path}, line {line}: {len(cells)} columns, expected {len(header)} ({', '.join(header)}); put text "
                "with commas in double quotes"
            )
            continue
        listed.append((f"{path}, line {line}", dict(zip(header, cells, strict=True))))
    labels = typed_columns(((p, {c: t for c, t in row.items() if c not in COLUMNS}) for p, row in listed), errors)
    own = [{c: t for c, t in row.items() if c in COLUMNS and t.strip().lower() not in UNKNOWN} for _, row in listed]
    return [(place, cells, found) for (place, _), cells, found in zip(listed, own, labels, strict=True)]


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of every row that is not empty: a report in quotes may span several."""
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{path}, line {line}: not CSV ({error})") from None


def _read_jsonl(path: Path, errors: list[str]) -> Listed:
    found: Listed = []
    kinds: dict[str, tuple[type, str]] = {}
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{path}, line {line}"
        try:
            row = json.loads(text)
            json.dumps(row, ensure_ascii=False).encode()  # an escape can stand for half a character
        except (ValueError, RecursionError) as error:
            errors.append(f"{place}: not JSON ({str(error)[:80]})")
            continue
        if not isinstance(row, dict):
            errors.append(f"{place}: holds {type(row).__name__}, expected an object")
            continue
        unknown = [key for key in row if key not in (*COLUMNS, "labels")]
        if unknown:
            errors.append(f"{place}, column {unknown[0]}: no such key; there are {', '.join(COLUMNS)} and labels")
            continue
        listed = row.pop("labels", None)
        if not isinstance(listed, dict | None):
            errors.append(f"{place}, column labels: {type(listed).__name__}, expected an object of texts and numbers")
            continue
        labels: dict[str, Label] = {}
        for name, value in (listed or {}).items():
            label = _json_label(f"{place}, column labels.{name}", value, errors)
            if label is None:
                continue
            kind, first = kinds.setdefault(name, (type(label), place))
            if kind is not type(label):
                errors.append(f"{place}, column labels.{name}: {value!r} is of another type than in {first}")
            labels[name] = label
        found.append((place, {c: v for c, v in row.items() if not _is_unknown(v)}, labels))
    return found


def _is_unknown(value: Any) -> bool:
    if isinstance(value, float) and math.isnan(value):  # as pandas writes it
        return True
    return value is None or (isinstance(value, str) and value.strip().lower() in UNKNOWN)


def _json_label(place: str, value: Any, errors: list[str]) -> Label | None:
    if _is_unknown(value):
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return float(value)
    errors.append(f"{place}: {value!r:.40}, expected text, a finite number, or null where unknown")
    return None


def _row(manifest: Path, place: str, cells: dict[str, Any], labels: dict[str, Label]) -> Row:
    """Check one row's own columns, or raise SourceError."""

    def broken(column: str, what: str) -> SourceError:
        return SourceError(f"{place}, column {column}: {what}")

    for column in REQUIRED:
        if column not in cells:
            raise broken(column, "is empty")
    for column in ("path", "patient", "split", "region", "mask"):
        if column in cells and not (isinstance(cells[column], str) and cells[column].strip()):
            raise broken(column, f"{cells[column]!r}, expected text")
    path = manifest.parent / cells["path"].strip()
    mask = manifest.parent / cells["mask"].strip() if "mask" in cells else None
    for column, file in (("path", path), ("mask", mask)):
        try:
            there = file is None or file.exists()
        except OSError as error:
            raise broken(column, f"{str(file)[:80]} cannot be read ({error.strerror})") from None
        if not there:
            raise broken(column, f"{file} does not exist")
    listed, split = cells.get("split"), None
    if listed is not None:
        split = next((name for name in SPLITS if name == listed.strip()), None)
        if split is None:
            raise broken("split", f"{listed!r}, expected one of {', '.join(SPLITS)}")
    volume = str(cells.get("volume", 0)).strip()
    if not volume.isdecimal() or len(volume) > MOST_DIGITS:
        raise broken("volume", f"{volume[:40]!r}, expected a whole number from 0")
    report, region = cells.get("report", ""), cells.get("region")
    if isinstance(report, list) and all(isinstance(s, str) or _is_unknown(s) for s in report):
        said = tuple(s.strip() for s in report if not _is_unknown(s))
    elif isinstance(report, str):
        said = sentences(report)
    else:
        raise broken("report", f"{type(report).__name__}, expected text or a list of texts")
    try:
        boxes = _boxes(cells["boxes"]) if "boxes" in cells else None
    except BoxError as error:
        raise broken("boxes", str(error)) from None
    facts = Facts(
        labels=labels,
        report=said,
        boxes=boxes,
        region=region.strip() if region else None,
        patient=cells["patient"].strip(),
    )
    return Row(place, path, int(volume), split, facts, mask)


class BoxError(ValueError):
    """What is wrong with a cell of boxes."""


def _boxes(cell: Any) -> tuple[Box, ...]:
    """Return the boxes of a cell, JSON text in a CSV file; raise BoxError saying what is wrong with them."""
    try:
        listed = json.loads(cell) if isinstance(cell, str) else cell
    except (ValueError, RecursionError) as error:
        raise BoxError(f"not JSON ({str(error)[:80]})") from None
    if not isinstance(listed, list):
        raise BoxError(f"{type(listed).__name__}, expected a list of boxes")
    boxes = []
    for number, box in enumerate(listed, start=1):
        if not isinstance(box, dict) or not {"center_lps_mm", "size_mm"} <= box.keys() <= BOX_KEYS:
            raise BoxError(f"box {number} is {str(box)[:80]}, expected center_lps_mm, size_mm and perhaps label")
        label = box.get("label", "")
        if not isinstance(label, str):
            raise BoxError(f"label of box {number} is {label!r}, expected text")
        centre, size = (_three(box[key], f"{key} of box {number}") for key in ("center_lps_mm", "size_mm"))
        if min(size) <= 0:
            raise BoxError(f"size_mm of box {number} is {list(size)}, expected more than 0 mm along each axis")
        boxes.append(Box(centre, size, label))
    return tuple(boxes)


def _three(value: Any, name: str) -> tuple[float, float, float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(type(x) in (int, float) and abs(x) < FARTHEST_MM for x in numbers):
        raise BoxError(f"{name} is {str(value)[:80]}, expected three numbers in mm")
    x, y, z = map(float, numbers)
    return x, y, z
