"""``decipher-rt search``: series of an index by words or by another series."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.cli.options import READ_OPTIONS, bundle_option, engine_options, given, read_options
from decipher_rt.errors import one_line, shown_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from decipher_rt.bundle import Bundle
    from decipher_rt.series import ReadOptions

SCHEMA = "decipher-rt/search/1"
SERIES_SUFFIXES = (".nii", ".nii.gz", ".dcm", ".zip")


@click.command(
    short_help="Find series of an index by words or by a series.",
    epilog="""\b
Examples:
  decipher-rt search archive.index "T2-weighted image with a lesion in the left frontal lobe"
  decipher-rt search archive.index series/ -k 5 --json | jq .hits
""",
)
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("query", metavar='"QUERY"|SERIES')
@click.option("-k", "--count", default=10, show_default=True, type=click.IntRange(1, 10_000), help="Hits at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@bundle_option
@engine_options
@read_options
def search(
    index: Path,
    query: str,
    count: int,
    as_json: bool,
    bundle: Path | None,
    engine: str,
    device: str | None,
    precision: Any,
    threads: int | None,
    volume: int,
    allow_gaps: bool,
    any_modality: bool,
) -> None:
    """Find the series of INDEX that are nearest to a text, or to the series under a path.

    Nearest is by the cosine between embeddings; every series of the index is compared. The bundle must be the one that
    the index was made with. A query that is the path of something is taken for a series, anything else for words.
    """
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.index import read_index, require_bundle, search_index
    from decipher_rt.result import as_text

    opened_index = read_index(index)
    opened = open_bundle(bundle or DEFAULT_BUNDLE, only_used=True)
    require_bundle(opened_index, opened, index)
    by_series = _is_series(query)
    if by_series:
        from decipher_rt.series import ReadOptions

        session_arguments = {"engine": engine, "device": device, "precision": precision, "threads": threads}
        options = ReadOptions(volume=volume, allow_gaps=allow_gaps, any_modality=any_modality)
        vector = _embed_series(opened, Path(query), options, session_arguments)
    else:
        if idle := given("engine", "device", "precision", *READ_OPTIONS):
            raise click.UsageError(f"words are embedded on the CPU in fp32, and no series is read: leave out {idle}")
        vector = _embed_text(opened, query, threads)
    hits = search_index(opened_index, vector, count)
    if as_json:
        rows = [{"cosine": round(hit.cosine, 7), **dataclasses.asdict(hit.entry)} for hit in hits]
        about = {"index": as_text(index), "bundle_sha256": opened.sha256, "query": as_text(query)}
        found = {"by": "series" if by_series else "text", "searched": len(opened_index.entries), "hits": rows}
        click.echo(json.dumps({"schema": SCHEMA, **about, **found}))
        return
    in_place = Counter(entry.path for entry in opened_index.entries)
    for rank, hit in enumerate(hits, 1):
        entry = hit.entry
        series = entry.uid if in_place[entry.path] > 1 else ""
        what = one_line("  ".join(filter(None, (entry.manufacturer, entry.description, series))))
        marks = f"  volume {entry.volume_index}" * (entry.volume_index > 0)
        marks += "" if entry.in_scope else click.style("  out of scope", fg="yellow")
        click.echo(f"{rank:>4}  {hit.cosine:+.4f}  {click.style(shown_path(entry.path), bold=True)}  {what}{marks}")


def _is_series(query: str) -> bool:
    """Whether a query is a path. What looks like one and is not there is an error and never searched as words."""
    looks = query.lower().endswith(SERIES_SUFFIXES) or query.startswith(("/", "./", "../", "~"))
    try:
        exists = bool(query) and Path(query).exists()  # Path("") is the working folder
    except (OSError, ValueError):  # a name too long, or with a zero byte: words
        exists = False
    if looks and not exists:
        raise click.UsageError(f"{query}: no such file or folder")
    return exists


def _embed_series(
    bundle: Bundle, path: Path, options: ReadOptions, session_arguments: dict[str, Any]
) -> NDArray[np.float32]:
    from decipher_rt.session import Session

    result = Session(bundle, **session_arguments, heads=()).infer(path, options)
    if not result.scope.inside:
        reason = one_line(result.scope.reason)
        click.echo(f"decipher-rt: {shown_path(path)} is out of scope ({reason}); hits may mean little", err=True)
    if isinstance(result.embedding, str):  # only a writer replaces it by a file's name
        raise TypeError(result.embedding)
    return result.embedding


def _embed_text(bundle: Bundle, text: str, threads: int | None) -> NDArray[np.float32]:
    from decipher_rt.engines.threads import usable_cores
    from decipher_rt.text import TextTower

    vector: NDArray[np.float32] = TextTower(bundle, threads or usable_cores()).embed([text])[0]
    return vector
