"""An index of series: their embeddings in one file, searched exactly by words or by another series.

The file is a NumPy archive (``.npz``) of two arrays, which is read without pickle and whose parts carry checksums:
``vectors`` (N, E) float32, L2-normalised, and ``about``, UTF-8 JSON as bytes, that says what the rows are and which
bundle made them. The search itself is usearch's, over all rows.
"""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.archives import read_arrays
from decipher_rt.atomic import write_bytes
from decipher_rt.bundle import Bundle
from decipher_rt.errors import DecipherError
from decipher_rt.result import UNIT_TOLERANCE, Result

SCHEMA = "decipher-rt/index/1"
MAX_BYTES = 8 << 30  # of the file; a row of 512 values is 2 KiB
ADVICE = "make it again with 'decipher-rt embed'"


@dataclass(frozen=True)
class IndexEntry:
    """Which series a row stands for; ``path`` is absolute. Nothing of the patient is kept."""

    uid: str
    volume_index: int
    path: str
    manufacturer: str
    description: str
    in_scope: bool


@dataclass(frozen=True)
class SeriesIndex:
    """Embeddings of series, all of one bundle.

    Attributes
    ----------
    bundle_name, bundle_version, bundle_sha256 : str
        Embeddings of different bundles cannot be compared.
    vectors : ndarray, shape (N, E), float32
        L2-normalised.
    entries : tuple of N IndexEntry
    """

    bundle_name: str
    bundle_version: str
    bundle_sha256: str
    vectors: NDArray[np.float32]
    entries: tuple[IndexEntry, ...]


@dataclass(frozen=True)
class Hit:
    """A row that a search found."""

    cosine: float
    entry: IndexEntry


def empty_index(bundle: Bundle) -> SeriesIndex:
    """Return an index of no series for a bundle."""
    manifest = bundle.manifest
    vectors = np.zeros((0, manifest.encoder.embedding_size), np.float32)
    return SeriesIndex(manifest.name, manifest.version, bundle.sha256, vectors, ())


def add_results(index: SeriesIndex, results: Iterable[tuple[Result, NDArray[np.float32]]]) -> SeriesIndex:
    """Return an index with the series of some results added; one that is in it already is replaced.

    Parameters
    ----------
    index : SeriesIndex
    results : iterable of (Result, embedding (E,))
    """
    rows = {(e.uid, e.volume_index): (v, e) for v, e in zip(index.vectors, index.entries, strict=True)}
    for result, embedding in results:
        series = result.series
        entry = IndexEntry(
            uid=str(series["uid"]),
            volume_index=int(series["volume_index"]),
            path=str(Path(series["path"]).absolute()),
            manufacturer=str(series["manufacturer"]),
            description=str(series["description"]),
            in_scope=result.scope.inside,
        )
        rows[entry.uid, entry.volume_index] = (embedding.astype(np.float32), entry)
    vectors = np.stack([vector for vector, _ in rows.values()]) if rows else index.vectors
    return dataclasses.replace(index, vectors=vectors, entries=tuple(entry for _, entry in rows.values()))


def store_results(
    path: Path, bundle: Bundle, results: Iterable[tuple[Result, NDArray[np.float32]]], *, add: bool
) -> SeriesIndex:
    """Put results into the index at ``path`` as it is now, and return what it holds then.

    One process at a time: what others add to the same index while series are embedded is kept. Where a file system has
    no locks for folders, only those who write at the same moment can lose rows.

    Parameters
    ----------
    path : Path
        Of a symbolic link, what it points to.
    bundle : Bundle
        That made the embeddings.
    results : iterable of (Result, embedding (E,))
    add : bool
        Whether there may be an index already.

    Raises
    ------
    DecipherError
        Where there is one and ``add`` is false, or it is damaged or of another bundle.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(path.parent):
        require_absent(path, add=add)
        before = read_index(path) if path.exists() else empty_index(bundle)
        require_bundle(before, bundle, path)
        index = add_results(before, results)
        write_index(path, index)
    return index


def require_absent(path: Path, *, add: bool) -> None:
    """Raise DecipherError where an index would be replaced that was not to be added to."""
    if path.exists() and not add:
        raise DecipherError(f"{path} exists; add to it with --add, or choose another name")


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_index(path: Path, index: SeriesIndex) -> None:
    """Write an index beside its place, then rename: it is whole or not there."""
    about = {
        "schema": SCHEMA,
        "bundle": {"name": index.bundle_name, "version": index.bundle_version, "sha256": index.bundle_sha256},
        "series": [dataclasses.asdict(entry) for entry in index.entries],
    }
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, vectors=index.vectors, about=text)
    write_bytes(path, buffer.getvalue())


def read_index(path: Path) -> SeriesIndex:
    """Read an index.

    Raises
    ------
    DecipherError
        In one line, if the file is absent, cut off, altered or something else.
    """
    if not path.is_file():
        raise DecipherError(f"{path}: no such index; {ADVICE}")
    if path.stat().st_size > MAX_BYTES:
        raise DecipherError(f"{path}: larger than {MAX_BYTES >> 30} GiB, no index of this program; {ADVICE}")
    try:
        with path.open("rb") as file:
            stored = read_arrays(file, ("vectors", "about"), MAX_BYTES, compressed=False)
        vectors, about = stored["vectors"], json.loads(stored["about"].tobytes())
    except (OSError, ValueError, KeyError, RecursionError):
        raise DecipherError(f"{path}: is damaged, or no index of decipher-rt; {ADVICE}") from None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        found = about.get("schema") if isinstance(about, dict) else None
        raise DecipherError(f"{path}: schema is {str(found)[:60]!r}, this program reads {SCHEMA!r}; {ADVICE}")
    try:
        entries = tuple(_entry(row) for row in about["series"])
        name, version, sha256 = (str(about["bundle"][key]) for key in ("name", "version", "sha256"))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        raise DecipherError(f"{path}: does not say what its rows are; {ADVICE}") from None
    good = vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == len(entries) and vectors.shape[1] > 0
    with np.errstate(all="ignore"):  # of what is no vector at all
        good = good and bool((np.abs(np.linalg.norm(vectors, axis=1) - 1) <= UNIT_TOLERANCE).all())
    if not good:
        raise DecipherError(f"{path}: its vectors are not unit vectors, one a series; {ADVICE}")
    return SeriesIndex(name, version, sha256, np.ascontiguousarray(vectors), entries)


def require_bundle(index: SeriesIndex, bundle: Bundle, path: Path) -> None:
    """Raise DecipherError where an index was made with another bundle: its vectors would mean something else."""
    manifest = bundle.manifest
    if index.bundle_sha256 == bundle.sha256:
        size = index.vectors.shape[1]
        if size != manifest.encoder.embedding_size:
            raise DecipherError(
                f"{path}: its vectors have {size} values, those of bundle {manifest.name} "
                f"{manifest.encoder.embedding_size}; {ADVICE}"
            )
        return
    raise DecipherError(
        f"{path}: made with bundle {index.bundle_name} {index.bundle_version} ({index.bundle_sha256[:12]}), not with "
        f"{manifest.name} {manifest.version} ({bundle.sha256[:12]}): give that bundle with -b, or {ADVICE}"
    )


def search_index(index: SeriesIndex, query: NDArray[np.float32], count: int) -> list[Hit]:
    """Find the series nearest to a query by cosine, the nearest first; every row is looked at.

    Parameters
    ----------
    index : SeriesIndex
    query : ndarray, shape (E,)
        L2-normalised embedding of a series or a text.
    count : int
        How many at most.
    """
    count = min(count, len(index.entries))
    if count == 0:
        return []
    from usearch.index import MetricKind, search

    query = np.ascontiguousarray(query, np.float32)
    found = search(index.vectors, query, count, MetricKind.IP, exact=True)
    cosines = (1 - found.distances).clip(-1, 1)  # lengths are about 1
    return [Hit(float(cosine), index.entries[int(key)]) for key, cosine in zip(found.keys, cosines, strict=True)]


def _entry(row: Any) -> IndexEntry:
    texts = {key: str(row[key]) for key in ("uid", "path", "manufacturer", "description")}
    return IndexEntry(volume_index=int(row["volume_index"]), in_scope=bool(row["in_scope"]), **texts)
