"""Errors that a user can act on: one line that says what, where and what to do. The CLI ends with status 2 on them."""

import unicodedata

_COMMANDS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, directions of text, bytes that are no text, line breaks


def one_line(text: str) -> str:
    """Return a text without line breaks or control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def shown_path(path: object) -> str:
    """Return a path as it can be given again, every blank of it, without what a terminal would obey."""
    return "".join("?" if unicodedata.category(c) in _COMMANDS else c for c in str(path))


class DecipherError(Exception):
    """Base of all errors that are the input's or the machine's fault, never the program's."""

    def __str__(self) -> str:
        """Return the message on one line, whatever a file's name or header that it quotes holds."""
        return one_line(super().__str__())


class SeriesError(DecipherError):
    """A series (DICOM or NIfTI) that cannot be read as one volume. The message names the file or the position in mm."""


class BundleError(DecipherError):
    """A bundle that is damaged, incomplete, of another schema, or hostile. The message names the file or the key."""


class EngineError(DecipherError):
    """An engine that is absent on this machine or cannot run this bundle. The message says what to install."""
