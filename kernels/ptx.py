"""Read what the compiler said: the parameters of a PTX entry, and the resources that ptxas reports."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(\.ptr\b)?")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_TARGET = re.compile(r"^\.target\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """The entry of a module: name, ``sm_`` target, and parameters as ``ptr`` or a PTX type such as ``u32``."""

    name: str
    target: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Resources:
    """Of one thread, from ``ptxas -v``: registers, and bytes of stack and of registers spilled to memory."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


def read_entry(ptx: str) -> Entry:
    """Return the only entry of a PTX module.

    Raises
    ------
    ValueError
        Not exactly one entry.
    """
    entries = _ENTRY.findall(ptx)
    target = _TARGET.search(ptx)
    if len(entries) != 1 or target is None:
        raise ValueError(f"PTX with {len(entries)} visible entries, expected 1")
    name, parameters = entries[0]
    kinds = tuple("ptr" if pointer else kind for kind, pointer in _PARAMETER.findall(parameters))
    return Entry(name, target.group(1), kinds)


def read_resources(log: str) -> Resources:
    """Return what ``ptxas -v`` printed for a module with one entry.

    Raises
    ------
    ValueError
        The log does not speak of exactly one function.
    """
    registers, spills = _REGISTERS.findall(log), _SPILLS.findall(log)
    if len(registers) != 1 or len(spills) != 1:
        raise ValueError(f"ptxas reported on {len(registers)} functions, expected 1: {log.strip()[:200]!r}")
    return Resources(int(registers[0]), *(int(number) for number in spills[0]))
