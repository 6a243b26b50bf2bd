"""Options that the stages' commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from decipher_rt.atomic import require_place

Command = TypeVar("Command", bound=Callable[..., Any])


def _writable(_context: click.Context, _parameter: click.Parameter, folder: Path) -> Path:
    require_place(folder / "config.yaml")
    return folder


def output_option(default: str, what: str = "Folder of the run.") -> Callable[[Command], Command]:
    """Add ``-o``, a folder; that nothing can be written there is said before the work."""
    return click.option(
        "-o",
        "--output",
        default=default,
        show_default=True,
        type=click.Path(file_okay=False, path_type=Path),
        callback=_writable,
        help=what,
    )
