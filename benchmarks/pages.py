"""Bring measured figures into a page of docs, between the marks that say where each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "<!-- {}: from benchmarks/results -->\n", "<!-- end of {} -->\n"


def bring_in(page: str, brought: Mapping[str, Sequence[str]]) -> str:
    """Return the page with the lines of each name in their place.

    Raises
    ------
    ValueError
        Where the page has not both marks of a name.
    """
    for name, lines in brought.items():
        begin, end = (mark.format(name) for mark in MARK)
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"the page has no place for {name!r}: {begin.strip()} and {end.strip()}")
        page = before + begin + "".join(f"{line}\n" for line in lines) + end + after
    return page


def rewrite(path: Path, brought: Mapping[str, Sequence[str]]) -> None:
    """Do it to a file."""
    path.write_text(bring_in(path.read_text(encoding="utf-8"), brought), encoding="utf-8")
