"""Where training data come from: the simulator, a manifest of DICOM series and NIfTI files, or a BIDS folder.

Every source yields `Example`s by number, on the encoder's grid, kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
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
    "keys_of_others",
    "listed_rows",
    "open_source",
    "patients_of",
    "pinned",
    "seen_again",
]
HASHED = 12  # hexadecimal digits of the hash of a patient's key, and of a cohort's name


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
    """Return short hashes of every patient in some splits, of the key and after a full stop of the cohort.

    Of the simulator, whose patients are nobody, none. Only of a manifest without ``cohort`` is it the key alone. A
    participant of a BIDS folder, "sub-001", has the hash of a manifest's patient "001".

    Raises
    ------
    SourceError
    """
    if config.kind == "simulator":
        return set()
    from .bids import name_of
    from .recorded import list_rows
    from .rows import share_out

    shared = share_out(list_rows(config), config.seed, config.shares)
    keys = {row.facts.patient.removeprefix("sub-") for split in splits for row in shared[split]}
    cohort = config.cohort or (name_of(Path(config.path)) if config.kind == "bids" else "")
    return {".".join(_hash(text)[:HASHED] for text in (key, cohort) if text) for key in keys}


def seen_again(config: SourceConfig, earlier: Collection[str], *splits: Split) -> set[str]:
    """Return which patients of some splits are among those of an earlier stage, by their hashes.

    Where either cohort is not known, equal keys are one patient; not where this source's is stated (``cohort``).

    Raises
    ------
    SourceError
    """
    mine, there = patients_of(config, *splits), set(earlier)
    if config.cohort:
        return mine & there
    keys = {patient.partition(".")[0] for patient in there}

    def met(patient: str) -> bool:
        key, known, _ = patient.partition(".")
        return patient in there or key in (there if known else keys)

    return set(filter(met, mine))


def keys_of_others(config: SourceConfig, earlier: Collection[str], *splits: Split) -> int:
    """Return how many patients of some splits have the key of an earlier one, in what is said to be another cohort.

    None where this source's cohort is stated: then somebody has looked.
    """
    if config.cohort:
        return 0
    keys = {patient.partition(".")[0] for patient in earlier}
    return sum(patient.partition(".")[0] in keys for patient in patients_of(config, *splits) - {*earlier})


def pinned(config: SourceConfig, *, images: bool = True, labels: bool = True) -> SourceConfig:
    """Return the source with a digest of all that it lists, so that a run of other labels is another run.

    Of the simulator it is one of the base anatomy and the code, from which its series and reports follow.

    So is one of other masks, or of images of other names or sizes, unless ``images`` is false: then no file is looked
    at. Unless ``labels`` is false: then the images of the train split alone count, of whom each is, and their order.
    Where the files lie, and since when, makes no difference.

    Raises
    ------
    SourceError
    """
    if config.kind == "simulator":
        from .simulated import simulator_digest

        return replace(config, listed=simulator_digest(config.anatomy))
    from .recorded import list_rows, rows_of_split
    from .rows import names_below

    if not labels:
        seen = rows_of_split(config, "train")
        names = names_below(row.path for row in seen)
        images_of = [
            (names[row.path], row.volume, row.facts.patient, replace(row, mask=None).files.named) for row in seen
        ]
        return replace(config, listed=_hash("\n".join(map(repr, images_of))))
    rows = list_rows(config)
    series, masks = names_below(row.path for row in rows), names_below(row.mask for row in rows if row.mask)
    listed = sorted(
        repr(
            (
                series[row.path],
                row.mask and masks[row.mask],
                row.volume,
                row.split,
                row.facts,
                images and (row.files.named, row.mask and _sum(row.mask)),
            )
        )
        for row in rows
    )
    return replace(config, listed=_hash("\n".join(listed)))


def _sum(mask: Path) -> str:
    """Return the SHA-256 of a mask: drawn anew it may have the size that it had."""
    if mask.is_dir():
        return ""
    with mask.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
