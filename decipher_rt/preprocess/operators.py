"""Which operators a bundle's graph may hold. DALI has others that read files or call a function by its address."""

from __future__ import annotations

from collections.abc import Iterator

from decipher_rt.errors import BundleError

ALLOWED = frozenset(
    {
        "ExternalSource",
        "Resize",
        "Slice",
        "Squeeze",
        "Transpose",
        "_ArithmeticGenericOp",
        "_conditional__Merge",
        "_conditional__Split",
    }
)

# dali.proto: PipelineDef.op is field 5, OpDef.name field 1, as protocol buffers number them.
OPERATOR_FIELD, NAME_FIELD = 5, 1
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
# What reads a graph keeps 32 bits of a key and 31 of a size: one with more would be another field there than here.
LARGEST_KEY, LARGEST_SIZE, LONGEST_VARINT = 2**32 - 1, 2**31 - 1, 10


def check_operators(graph: bytes) -> None:
    """Raise BundleError where a serialised graph holds anything but the operators of preprocessing."""
    try:
        names = [
            bytes(name).decode(errors="replace")
            for field, operator in _fields(memoryview(graph))
            if field == OPERATOR_FIELD
            for inner, name in _fields(operator)
            if inner == NAME_FIELD
        ]
    except IndexError as error:
        raise BundleError("the preprocessing graph is damaged: it is no serialised DALI graph") from error
    foreign = sorted(set(names) - ALLOWED)
    if foreign or not names:
        found = ", ".join(foreign) or "no operator"
        raise BundleError(f"the preprocessing graph holds {found}, which preprocessing does not use: it is not run")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the length-delimited fields of a protocol buffer message; the others are skipped."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if not number or key > LARGEST_KEY:
            raise IndexError(f"key {key}")
        if kind == VARINT:
            _, at = _varint(message, at)
            continue
        if kind == LENGTH_DELIMITED:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise IndexError(f"wire type {kind}")
        if size > min(len(message) - at, LARGEST_SIZE):
            raise IndexError("the message ends within a field")
        if kind == LENGTH_DELIMITED:
            yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(LONGEST_VARINT):
        byte = message[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise IndexError("a number without end")
