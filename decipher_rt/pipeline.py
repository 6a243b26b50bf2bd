"""Successive series overlap: while one is encoded, the next is preprocessed and the one after it is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from decipher_rt.clock import StageClock
from decipher_rt.errors import DecipherError, SeriesError, one_line
from decipher_rt.result import Failure
from decipher_rt.series import ReadOptions, Series, find_among_files, find_series, is_nifti, read_series
from decipher_rt.volume import Volume

T = TypeVar("T")

AHEAD = "one-ahead"  # how the threads that work in advance are called
NO_MEMORY = "needs more memory than there is; close other programs, or answer for it on another machine"
_END: Any = object()


@dataclass(frozen=True)
class OpenedSeries:
    """A series that was read, and its content let go; its clock stands at the end of stage ``read``."""

    series: Series
    volume: Volume
    clock: StageClock


def read_each(
    paths: Iterable[Path | str], options: ReadOptions, wanted: Callable[[Series], bool] = lambda _: True
) -> Iterator[OpenedSeries | Failure]:
    """Read the wanted series under the paths, in order; one that cannot be read is a Failure and the others go on.

    DICOM files in a list or tuple may be the slices of one series: they are searched together, in the place of the
    first. Paths that come one by one, from a generator, are searched one by one.
    """
    slices = [path for path in map(Path, paths) if _may_be_a_slice(path)] if isinstance(paths, Sequence) else []
    together = frozenset(slices if len(slices) > 1 else ())
    begun = False
    for path in map(Path, paths):
        if path not in together:  # by itself, so that an archive is let go before the next one is read
            yield from _read_found(partial(find_series, path, options), path, options, wanted)
        elif not begun:
            begun = True
            yield from _read_found(partial(find_among_files, slices, options), path, options, wanted)


def _may_be_a_slice(path: Path) -> bool:
    try:
        return path.is_file() and path.suffix.lower() != ".zip" and not is_nifti(path.name)
    except (OSError, ValueError):  # it will be said what is wrong with it
        return False


def _read_found(
    find: Callable[[], list[Series]], path: Path, options: ReadOptions, wanted: Callable[[Series], bool]
) -> Iterator[OpenedSeries | Failure]:
    start = time.perf_counter()
    try:
        found = find()
    except DecipherError as error:
        yield Failure(str(path), None, str(error))
        return
    except MemoryError:
        yield Failure(str(path), None, one_line(f"{path}: {NO_MEMORY}"))
        return
    asked = [series for series in found if wanted(series)]
    share_ms = (time.perf_counter() - start) * 1e3 / max(len(asked), 1)
    for series in asked:
        try:
            yield open_series(series, options, StageClock(share_ms))
        except DecipherError as error:
            yield Failure(str(series.path), series.uid or None, str(error))


def open_series(series: Series, options: ReadOptions, clock: StageClock) -> OpenedSeries:
    """Read one series.

    Raises
    ------
    SeriesError
        As ``read_series``, with the path.
    """
    with in_memory(series):
        try:
            volume = read_series(series, options)
        except SeriesError as error:
            raise SeriesError(located(series, str(error))) from None
    clock.finish("read")
    return OpenedSeries(replace(series, content="was read"), volume, clock)


@contextmanager
def in_memory(series: Series) -> Iterator[None]:
    """Let a series that is too large for this machine be one that cannot be read: those after it may be smaller."""
    try:
        yield
    except MemoryError:
        raise SeriesError(located(series, NO_MEMORY)) from None


def located(series: Series, message: str) -> str:
    """Say which of several series a message is about, where it does not."""
    path = one_line(str(series.path))
    if message.startswith((f"{path}: ", f"{path}/", f"{path} (")):
        return message
    if message.startswith(f"{series.path.name}: ") and not series.path.is_dir():  # the file itself
        return path + message.removeprefix(series.path.name)
    return f"{path} ({series.description}): {message}" if series.description else f"{path}: {message}"


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Make the first item now, and each next one while the caller works on the one before, on a thread.

    At most one item waits, so that memory stays bounded. An exception comes where its item would have come.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=AHEAD)
    iterator = iter(items)
    return _drain(pool, iterator, pool.submit(next, iterator, _END))


def _drain(pool: ThreadPoolExecutor, iterator: Iterator[T], waiting: Future[T]) -> Iterator[T]:
    wait = True
    try:
        while (item := waiting.result()) is not _END:
            waiting = pool.submit(next, iterator, _END)
            yield item
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait)
