"""Series whose truth is known, as the encoder takes them: what reduced precisions are calibrated and judged on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor
from decipher_rt.series import ReadOptions, find_series, read_series
from decipher_rt.tokens import select_tokens
from decipher_rt.train.decoders.contract import Known
from decipher_rt.train.decoders.tokens import known_of
from decipher_rt.train.model.recipe import RecipeConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.samples import Split
from decipher_rt.train.shards import SHARD
from decipher_rt.train.sources import SourceConfig, open_source
from decipher_rt.train.views import UNIT_WINDOW

Arrays = Mapping[str, NDArray[Any]]

CALIBRATION_SERIES = SHARD  # of each source; they are made by the shard


@dataclass(frozen=True)
class KnownSeries:
    """One preprocessed series.

    Attributes
    ----------
    inputs : mapping
        ``volume`` (1, 1, D, H, W), ``window`` (1, 2) and ``tokens`` (1, K) of the encoder.
    known : Known or None
        What is known of it; of series of a user nothing.
    tissue : ndarray, shape (D, H, W), uint8, or None
        The source's map.
    heads : tuple of str
        Which heads it judges: those that were trained on its source.
    """

    inputs: Arrays
    known: Known | None = None
    tissue: NDArray[np.uint8] | None = None
    heads: tuple[str, ...] = ()


def known_series(
    config: RecipeConfig, split: Split, count: int, cache: Path, progress: Progress
) -> Iterator[KnownSeries]:
    """Yield the first series of a split of every source, for the heads that were trained on that source.

    They are made where they are not in the cache.

    Parameters
    ----------
    config : RecipeConfig
        Of the model: it says where its series come from.
    split : "train", "validation" or "test"
    count : int
        Of each source.
    cache : Path
        The folder that ``decipher-rt evaluate`` uses too.
    progress : Progress

    Raises
    ------
    SourceError
        If a source that is no simulator is not where the model's configuration says.
    """
    spec, seen = config.encoder.preprocessing, list[SourceConfig]()
    for source in config.sources.values():
        if source in seen:
            continue
        seen.append(source)
        heads = tuple(d.name for d in config.decoders if config.sources[d.name] == source)
        # Of a simulator no more are made than are looked at: its splits have no end, and share their series.
        some = replace(source, **{split: min(count, getattr(source, split))})
        examples = open_source(some, spec, split, cache, config.workers, progress)
        for index in range(min(count, len(examples))):
            example = examples[index]
            known = known_of(example, example.affine_lps_mm, tissue=example.tissue is not None)
            yield KnownSeries(_unit_inputs(example.volume, spec), known, example.tissue, heads)


def real_series(paths: Sequence[Path], spec: Preprocessing) -> Iterator[KnownSeries]:
    """Yield the series under some paths, read and preprocessed as the runtime does it; nothing is known of them.

    Raises
    ------
    SeriesError
        If one of them cannot be read.
    """
    preprocess, options = Preprocessor(None, spec), ReadOptions()
    for path in paths:
        for found in find_series(path, options):
            yield KnownSeries(_inputs(preprocess(read_series(found, options)), spec))


def calibration_inputs(config: RecipeConfig, paths: Sequence[Path], cache: Path, progress: Progress) -> list[Arrays]:
    """Return what int8 is calibrated on: heads of the training split, and the real series under ``paths``."""
    trained_on = known_series(config, "train", CALIBRATION_SERIES, cache, progress)
    heads = [series.inputs for series in trained_on if series.known and series.known.kind == "head"]
    return heads + [series.inputs for series in real_series(paths, config.encoder.preprocessing)]


def _unit_inputs(volume: NDArray[np.float16], spec: Preprocessing) -> Arrays:
    """Return the inputs of a stored volume, 0 and 1 of which are the ends of its window."""
    return _inputs(Grid(volume.astype(np.float32), UNIT_WINDOW, np.eye(4)), spec)


def _inputs(grid: Grid, spec: Preprocessing) -> Arrays:
    tokens = select_tokens(grid, spec).indices
    window = np.asarray(grid.window, np.float32)
    return {"volume": grid.volume[None, None], "window": window[None], "tokens": tokens[None]}
