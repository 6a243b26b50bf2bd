"""``decipher-rt embed``: series into an index that ``decipher-rt search`` looks through."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.cli.options import bundle_option, engine_options, read_options
from decipher_rt.errors import DecipherError, shown_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from decipher_rt.clock import StageClock
    from decipher_rt.result import Result
    from decipher_rt.series import Series
    from decipher_rt.volume import Volume

STORED_TOGETHER = 256


@click.command(
    short_help="Put series into an index to search.",
    epilog="""\b
Examples:
  decipher-rt embed archive/ -o archive.index
  decipher-rt embed today/ -o archive.index --add
  decipher-rt embed archive/ -o archive.index --new   # goes on where it was interrupted

Exit status: 0 all are in, 1 some of several series failed, 2 none could be read.
""",
)
@click.argument("paths", metavar="SERIES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="INDEX", required=True, type=click.Path(path_type=Path), help="File.")
@click.option("--add", is_flag=True, help="Add to INDEX; a series that is in it is replaced.")
@click.option("--new", "only_new", is_flag=True, help="Add to INDEX what it does not have; the rest is not embedded.")
@bundle_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@engine_options
@read_options
def embed(
    paths: tuple[Path, ...],
    output: Path,
    add: bool,
    only_new: bool,
    bundle: Path | None,
    as_json: bool,
    engine: str,
    device: str | None,
    precision: Any,
    threads: int | None,
    volume: int,
    allow_gaps: bool,
    any_modality: bool,
) -> None:
    """Embed each DICOM or NIfTI series under SERIES and write INDEX.

    INDEX holds the embeddings, the path of each series and what its headers say but for the patient, and which bundle
    made it. A series out of the bundle's scope goes in and is marked. INDEX is written every 256 series and at the end.
    """
    import decipher_rt
    from decipher_rt.atomic import require_place
    from decipher_rt.index import read_index, require_absent, require_bundle, store_results
    from decipher_rt.pipeline import one_ahead, read_each
    from decipher_rt.result import Failure, SeriesSeen, as_text
    from decipher_rt.series import ReadOptions

    add = add or only_new
    require_absent(output, add=add)
    require_place(output)
    before = read_index(output) if output.exists() else None
    session = decipher_rt.load(bundle, engine=engine, device=device, precision=precision, threads=threads, heads=())
    if before is not None:
        require_bundle(before, session.bundle, output)
    options = ReadOptions(volume=volume, allow_gaps=allow_gaps, any_modality=any_modality)
    seen = SeriesSeen()
    known = {(entry.uid, entry.volume_index) for entry in before.entries} if before else set()
    added: set[tuple[str, int]] = set()
    waiting: list[tuple[Result, NDArray[np.float32]]] = []
    embedded = failed = left_out = 0
    begun = add

    def check(result: Result, _: Volume, __: StageClock) -> Result:
        seen.require_new(result)
        return result

    def store() -> None:
        nonlocal embedded, begun
        if waiting:
            may_be_there, begun = begun, True  # what is interrupted from here on may have been written
            try:
                store_results(output, session.bundle, waiting, add=may_be_there)
            except DecipherError:  # it is told; what waits must not go into an index that another program began
                waiting.clear()
                raise
            embedded += len(waiting)
            waiting.clear()

    def wanted(series: Series) -> bool:
        nonlocal left_out
        there = only_new and (series.uid, volume) in known
        left_out += there
        return not there

    outcomes = session.answer_each(one_ahead(read_each(paths, options, wanted)), check)  # by name, as there
    try:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failed += 1
                click.echo(f"decipher-rt: {outcome.error}", err=True)
            elif not isinstance(outcome.embedding, str):
                waiting.append((outcome, outcome.embedding))
                added.add((str(outcome.series["uid"]), int(outcome.series["volume_index"])))
                if len(waiting) == STORED_TOGETHER:
                    store()
    finally:
        store()  # what interrupts an archive of hours loses nothing
    if embedded or left_out:
        index = read_index(output)
        outside = sum(not entry.in_scope for entry in index.entries)
        if as_json:
            counts = {"series": len(index.entries), "embedded": embedded, "failed": failed, "out_of_scope": outside}
            click.echo(json.dumps({"index": as_text(output), "bundle_sha256": index.bundle_sha256, **counts}))
        else:
            told = f"{len(index.entries)} series, {len(added - known)} of them new, {outside} out of scope"
            click.echo(f"{shown_path(output)}: {told}")
    sys.exit((1 if embedded or left_out else 2) if failed else 0)
