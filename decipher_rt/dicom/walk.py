"""Walk the data elements of an uncompressed little endian file without pydicom, strictly or not at all.

pydicom is the parser of record. This walker takes only what it understands beyond doubt (PS3.5 section 7, PS3.10
section 7): standard value representations, ascending tags, lengths within the file, one image at the very end. On
anything else it raises `UnusualFileError`, and the caller asks pydicom.

The files of a series have nearly the same header. The walk of the previous file is remembered as runs of elements;
where the next file has the same bytes at the place where the walk stands, walking them would give the same elements, so
the run is taken whole. A run that differs is walked element by element and split around what differs, so that after two
or three files only the elements that truly vary are looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from decipher_rt.dicom import elements as tags
from decipher_rt.dicom.image import ENHANCED
from decipher_rt.dicom.source import Source

IMPLICIT_LITTLE_ENDIAN: Final = b"1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN: Final = b"1.2.840.10008.1.2.1"

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
# Deeper sequences than this are not found in images; the limit keeps hostile files off the recursion limit.
MAX_DEPTH: Final = 16
# Files whose header is larger are read by pydicom (a Siemens CSA header with its protocol has 0.1 to 0.3 MB).
FIRST_READ: Final = 1 << 16
MAX_HEADER: Final = 1 << 23
# A run is remembered whole up to this many bytes, so that a difference never costs a walk of the whole header.
RUN_BYTES: Final = 1 << 12

LONG_VR: Final = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SHORT_VR: Final = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
RAW_VR: Final = {b"OB", b"UN"}
PIXEL_VR: Final = {b"OB", b"OW"}
# Group 7FE0 may hold nothing but its length and Pixel Data.
BEFORE_PIXELS: Final = 0x7FE00000

_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHI").unpack_from
_LENGTH = struct.Struct("<I").unpack_from


class UnusualFileError(Exception):
    """The file is not one that the walker takes; pydicom decides what it is."""


class _BeyondReadError(Exception):
    """The walk needs bytes beyond those that were read."""


@dataclass(frozen=True, slots=True)
class Walked:
    """The wanted elements of a file and where its image lies."""

    elements: tags.RawElements
    transfer_syntax: str
    pixel_offset: int
    pixel_length: int


@dataclass(slots=True)
class _Run:
    """Consecutive top-level elements: their bytes, the tag of the last, where each ends, and the wanted values."""

    raw: bytes
    last: int
    ends: list[tuple[int, int]] = field(default_factory=list)
    wanted: dict[int, bytes] = field(default_factory=dict)


class Walker:
    """Walks file after file and remembers the runs of the last one. ``wanted`` are the tags whose values are kept."""

    def __init__(self, wanted: Iterable[int]) -> None:
        self.wanted = frozenset(wanted)
        # One memory for each encoding (explicit or not): the same bytes mean something else in the other one.
        self._runs: dict[bool, list[_Run]] = {True: [], False: []}
        self._first_read = FIRST_READ

    def walk(self, source: Source) -> Walked:
        """Return the wanted elements of a source.

        Raises
        ------
        UnusualFileError
            Where the source is anything but a plain uncompressed little endian image.
        OSError
            Where the source cannot be read.
        """
        head = source.head(min(self._first_read, source.size))
        try:
            walked = self._walk(head, source.size)
        except _BeyondReadError:
            head = source.head(min(source.size, MAX_HEADER))
            try:
                walked = self._walk(head, source.size)
            except _BeyondReadError:
                raise UnusualFileError("the header goes on beyond what is read") from None
        self._first_read = max(FIRST_READ, min(walked.pixel_offset + 4096, MAX_HEADER))
        return walked

    def _walk(self, head: bytes, size: int) -> Walked:
        if head[128:132] != b"DICM":
            raise UnusualFileError("no DICM prefix")
        syntax, start = _file_meta(head)
        if syntax == EXPLICIT_LITTLE_ENDIAN:
            explicit = True
        elif syntax == IMPLICIT_LITTLE_ENDIAN:
            explicit = False
        else:
            raise UnusualFileError("another transfer syntax")
        values, position = self._elements(head, start, explicit, size)
        tag, vr, length, offset = _header(head, position, explicit)
        if tag != tags.PIXEL_DATA or (explicit and vr not in PIXEL_VR):
            raise UnusualFileError("no Pixel Data of 8 or 16 bit words")
        if offset + length != size:
            raise UnusualFileError("the image does not end the file")
        return Walked(tags.RawElements(values), syntax.decode("ascii"), offset, length)

    def _elements(self, head: bytes, position: int, explicit: bool, size: int) -> tuple[dict[int, bytes], int]:
        """Collect the wanted elements up to Pixel Data, whose position is returned."""
        values: dict[int, bytes] = {}
        last = 0x0002FFFF
        runs: list[_Run] = []
        if not explicit:
            _refuse_hidden_vr(head, position)
        for run in self._runs[explicit]:
            if head.startswith(run.raw, position):
                if run.ends[0][0] <= last:
                    raise UnusualFileError("tags do not ascend")
                values.update(run.wanted)
                position += len(run.raw)
                last = run.last
                runs.append(run)
            elif run.last > last:
                fresh, position, last = self._run(head, position, explicit, size, last, run.last)
                if fresh is not None:
                    values.update(fresh.wanted)
                    runs.extend(self._split(fresh, run))
        while True:
            fresh, position, last = self._run(head, position, explicit, size, last, BEFORE_PIXELS)
            if fresh is None:
                break
            values.update(fresh.wanted)
            runs.append(fresh)
        self._runs[explicit] = runs
        return values, position

    def _run(
        self, head: bytes, position: int, explicit: bool, size: int, last: int, until: int
    ) -> tuple[_Run | None, int, int]:
        """Walk elements with tags above ``last`` and up to ``until``; stop early where the run grows long."""
        start = position
        ends: list[tuple[int, int]] = []
        wanted: dict[int, bytes] = {}
        while position - start < RUN_BYTES:
            tag, vr, length, value = _header(head, position, explicit)
            if tag <= last:
                raise UnusualFileError("tags do not ascend")
            if tag > until:
                break
            if length == UNDEFINED:
                end = _sequence_end(head, value, vr, explicit, 0)
            else:
                end = value + length
                if end > size:
                    raise UnusualFileError("an element is longer than the file")
            if tag in self.wanted:
                if length == UNDEFINED:
                    raise UnusualFileError("a value of undefined length")
                if end > len(head):
                    raise _BeyondReadError
                if tag not in tags.INFORMATIVE or not explicit or vr == tags.VR[tag].encode():
                    _check_vr(tag, vr, explicit)
                    wanted[tag] = head[value:end]
                    if tag == tags.SOP_CLASS_UID:
                        _refuse_enhanced(wanted[tag])
            position = end
            last = tag
            ends.append((tag, position - start))
        if not ends:
            return None, position, last
        if position > len(head):
            raise _BeyondReadError
        return _Run(head[start:position], last, ends, wanted), position, last

    def _split(self, fresh: _Run, former: _Run) -> list[_Run]:
        """Cut a run so that elements that differ from the former run stand alone."""
        if len(fresh.ends) == 1:
            return [fresh]
        before = {tag: former.raw[begin:end] for tag, begin, end in _extents(former)}
        pieces: list[_Run] = []
        same = False
        for tag, begin, end in _extents(fresh):
            raw = fresh.raw[begin:end]
            wanted = {tag: fresh.wanted[tag]} if tag in fresh.wanted else {}
            if same and before.get(tag) == raw:
                piece = pieces[-1]
                piece.raw += raw
                piece.last = tag
                piece.ends.append((tag, len(piece.raw)))
                piece.wanted |= wanted
            else:
                pieces.append(_Run(raw, tag, [(tag, len(raw))], wanted))
                same = before.get(tag) == raw
        return pieces


def _extents(run: _Run) -> list[tuple[int, int, int]]:
    begins = [0, *(end for _, end in run.ends)]
    return [(tag, begin, end) for (tag, end), begin in zip(run.ends, begins, strict=False)]


def _file_meta(head: bytes) -> tuple[bytes, int]:
    """Return the transfer syntax and where the data set starts (PS3.10 section 7.1: explicit little endian)."""
    position = 132
    last = 0x0001FFFF
    syntax = b""
    said_end = None
    while _unpack_explicit(head, position)[0] == 0x0002:
        tag, _, length, value = _header(head, position, explicit=True)
        position = value + length
        if tag <= last or position > len(head):
            raise UnusualFileError("file meta information that does not ascend or is too long")
        if tag == 0x00020000 and length == 4:
            said_end = position + int(_LENGTH(head, value)[0])
        elif tag == 0x00020010:
            syntax = head[value:position].rstrip(b"\0 ")
        last = tag
    if said_end not in (None, position):
        raise UnusualFileError("the length of the file meta information is wrong")
    return syntax, position


def _unpack_explicit(head: bytes, position: int) -> tuple[int, int, bytes, int]:
    try:
        group, element, vr, length = _EXPLICIT(head, position)
    except struct.error:
        raise _BeyondReadError from None
    return group, element, vr, length


def _header(head: bytes, position: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """Return (tag, VR, length, position of the value) of an element; VR is empty for implicit VR."""
    try:
        if not explicit:
            group, element, length = _IMPLICIT(head, position)
            return group << 16 | element, b"", length, position + 8
        group, element, vr, length = _EXPLICIT(head, position)
        if vr in SHORT_VR:
            return group << 16 | element, vr, length, position + 8
        if vr in LONG_VR and length == 0:
            return group << 16 | element, vr, _LENGTH(head, position + 8)[0], position + 12
    except struct.error:
        raise _BeyondReadError from None
    raise UnusualFileError("a value representation that is not of the standard")


def _sequence_end(head: bytes, position: int, vr: bytes, explicit: bool, depth: int) -> int:
    """Return where a sequence of undefined length ends, having walked everything in it (PS3.5 section 7.5)."""
    if (explicit and vr != b"SQ") or depth > MAX_DEPTH:
        raise UnusualFileError("undefined length outside of a sequence")
    while True:
        tag, length = _item(head, position)
        position += 8
        if tag == SEQUENCE_END and length == 0:
            return position
        if tag != ITEM:
            raise UnusualFileError("a sequence holds something that is no item")
        end = position + length if length != UNDEFINED else None
        if end is not None and end > len(head):
            raise _BeyondReadError
        position = _item_end(head, position, end, explicit, depth)


def _item_end(head: bytes, position: int, end: int | None, explicit: bool, depth: int) -> int:
    last = 0
    while end is None or position < end:
        if end is None and _item(head, position) == (ITEM_END, 0):
            return position + 8
        tag, vr, length, value = _header(head, position, explicit)
        if tag <= last or tag >> 16 == 0xFFFE:
            raise UnusualFileError("tags in an item do not ascend")
        if not explicit and last == 0:
            _refuse_hidden_vr(head, position)
        position = _sequence_end(head, value, vr, explicit, depth + 1) if length == UNDEFINED else value + length
        if position > len(head):
            raise _BeyondReadError
        last = tag
    if position != end:
        raise UnusualFileError("an item ends within an element")
    return position


def _item(head: bytes, position: int) -> tuple[int, int]:
    try:
        group, element, length = _IMPLICIT(head, position)
    except struct.error:
        raise _BeyondReadError from None
    return group << 16 | element, length


def _check_vr(tag: int, vr: bytes, explicit: bool) -> None:
    expected = tags.VR[tag].encode()
    if explicit and vr != expected and not (expected == b"OB" and vr in RAW_VR):
        raise UnusualFileError("an element has another value representation than the standard gives it")


def _refuse_enhanced(sop_class: bytes) -> None:
    """Refuse what pydicom reads anyway, before the walk through its functional groups, a header of megabytes."""
    if sop_class.strip(b"\0 ").decode("latin-1") in ENHANCED:
        raise UnusualFileError("functional groups")


def _refuse_hidden_vr(head: bytes, position: int) -> None:
    """Refuse implicit data whose length could be two letters: pydicom then takes it as explicit."""
    letters = head[position + 4 : position + 6]
    if all(0x40 < letter < 0x5B for letter in letters):
        raise UnusualFileError("implicit and explicit cannot be told apart")
