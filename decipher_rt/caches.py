"""Where this machine keeps what a later process can use again. Nothing depends on it being there."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """Return ``$XDG_CACHE_HOME/decipher-rt/NAME``, by default below ``~/.cache``; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    return Path(base) / "decipher-rt" / name if base else None
