"""Keep libraries from logging what a file holds; their loggers are the whole process's."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()
_silenced: list[tuple[logging.Logger, int]] = []  # with what they were before, while the lock is held


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence loggers while the block runs.

    One thread at a time: a second would take for their levels what the first had set, and keep it for ever.
    """
    loggers = [logging.getLogger(name) for name in names]
    with _lock:
        outer = len(_silenced)
        try:
            for logger in loggers:
                _silenced.append((logger, logger.level))
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            _restore(outer)


def _restore(outer: int) -> None:
    while len(_silenced) > outer:
        logger, level = _silenced.pop()
        logger.setLevel(level)


def _unlock() -> None:
    """Give a process that was forked a lock that no thread of its parent holds, and what such a thread had silenced."""
    global _lock
    _lock = threading.RLock()
    _restore(0)


os.register_at_fork(after_in_child=_unlock)
