"""Keep libraries from logging what a file holds; their loggers are the whole process's."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence loggers while the block runs.

    One thread at a time: a second would take for their levels what the first had set, and keep it for ever.
    """
    loggers = [logging.getLogger(name) for name in names]
    with _lock:
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _unlock() -> None:
    """Give a process that was forked a lock that no thread of its parent holds."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_unlock)
