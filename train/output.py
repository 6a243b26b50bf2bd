"""The output folder of a command: one command at a time writes to it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoint import CheckpointError
from .distributed import rank


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep an output folder to this command while the block runs; of a run's processes the first one asks.

    Raises
    ------
    CheckpointError
        Where another command writes to it.
    """
    if rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{folder}: another command is writing to it; wait for its end, or give another output folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
