"""Where training data come from: the simulator, a manifest of DICOM series and NIfTI files, or a BIDS folder.

Every source yields `Example`s by number, on the encoder's grid, kept on disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from decipher_rt.manifest import Preprocessing

from ..progress import Progress
from ..samples import SPLITS, Split
from .config import SourceConfig
from .example import Box, Example, Examples, Facts, Label, ListedExamples
from .rows import Row

__all__ = [
    "SPLITS",
    "Box",
    "Example",
    "Examples",
    "Facts",
    "Label",
    "ListedExamples",
    "Row",
    "SourceConfig",
    "Split",
    "listed_rows",
    "open_source",
    "patients_of",
    "pinned",
]
HASHED = 12  # hexadecimal digits of a patient's hash


def open_source(
    config: SourceConfig, spec: Preprocessing, split: Split, cache_dir: Path, workers: int, progress: Progress
) -> Examples:
    """Return the examples of one split, making those that are not on disk yet.

    Parameters
    ----------
    config : SourceConfig
    spec : Preprocessing
        Grid and window of the encoder.
    split : "train", "validation" or "test"
    cache_dir : Path
        Where volumes on the grid are kept, in a folder for each source and split.
    workers : int
        Processes that make them.
    progress : Progress

    Raises
    ------
    SourceError
        Where a manifest or a BIDS folder, or a series in it, is broken: the message names file, line and column.
    AnatomyError
        Where the simulator's base anatomy cannot be used.
    """
    if config.kind == "simulator":
        from .simulated import open_simulator

        return open_simulator(config, spec, split, cache_dir, workers, progress)
    from .recorded import open_recorded

    return open_recorded(config, spec, split, cache_dir, workers, progress)


def listed_rows(config: SourceConfig, split: Split | None = None) -> list[Row] | None:
    """Return the rows of a manifest or BIDS folder, all or those of a split; None for the simulator, which lists none.

    Raises
    ------
    SourceError
    """
    if config.kind == "simulator":
        return None
    from .recorded import list_rows, rows_of_split

    return list(rows_of_split(config, split)) if split else list_rows(config)


def patients_of(config: SourceConfig, *splits: Split) -> set[str]:
    """Return a short hash of the key of every patient in some splits; of the simulator, whose are nobody, none.

    A participant of a BIDS folder, "sub-001", has the hash of a manifest's patient "001" as well.

    Raises
    ------
    SourceError
    """
    if config.kind == "simulator":
        return set()
    from .recorded import list_rows
    from .rows import share_out

    shared = share_out(list_rows(config), config.seed, config.shares)
    keys = {row.facts.patient.removeprefix("sub-") for split in splits for row in shared[split]}
    return {hashlib.sha256(key.encode()).hexdigest()[:HASHED] for key in keys}


def pinned(config: SourceConfig, *, images: bool = True) -> SourceConfig:
    """Return the source with a digest of all that it lists, so that a run of other labels is another run.

    So is one of other images or masks under the same names, unless ``images`` is false: then none is looked at.

    Raises
    ------
    SourceError
    """
    if config.kind == "simulator":
        return config
    from .recorded import files_of, list_rows

    listed = sorted(repr((row, files_of(row)) if images else row) for row in list_rows(config))
    return replace(config, listed=hashlib.sha256("\n".join(listed).encode()).hexdigest())
