"""The reports that the text encoder is pretrained on."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import ConfigError
from ..data.scene import draw_scene
from ..progress import Progress
from ..samples import Split, draw_kind, sample_seed
from ..sources import SourceConfig
from ..sources.anatomy import base_anatomy
from ..sources.recorded import list_rows
from ..sources.rows import share_out
from .findings import Findings, scene_findings
from .wordings import Wordings, write_report


def read_reports(source: SourceConfig, split: Split, count: int, progress: Progress) -> list[tuple[str, ...]]:
    """Return the reports of a split, sentences each, without those that are empty. No image is read or computed.

    Parameters
    ----------
    source : SourceConfig
        A manifest, or the simulator, which draws scenes and puts them into words.
    count : int
        Reports that the simulator draws; a manifest gives all that it has.

    Raises
    ------
    ConfigError
        If it is a BIDS folder, which holds no reports.
    SourceError
        If the manifest is broken.
    """
    if source.kind == "simulator":
        return draw_reports(source, split, count, progress)
    if source.kind == "bids":
        raise ConfigError("source.kind is bids, which holds no reports; list the series in a manifest with them")
    rows = share_out(list_rows(source), source.seed, source.shares)[split]
    return [row.facts.report for row in rows if row.facts.report]


def draw_reports(source: SourceConfig, split: Split, count: int, progress: Progress) -> list[tuple[str, ...]]:
    """Draw reports of the simulator, of heads and of what is none. The test split's are in the wordings held out."""
    anatomy = base_anatomy(source.anatomy, source.heads)
    reports = []
    with progress.bar(f"drawing {split} reports", count) as advance_to:
        for index in range(count):
            seed = sample_seed(source.seed, split, index)
            kind = draw_kind(seed, source.not_heads)
            found = scene_findings(draw_scene(seed, anatomy)) if kind == "head" else Findings(kind)
            reports.append(write_report(found, seed, wordings_of(split)))
            advance_to(index + 1)
    return reports


def wordings_of(split: Split) -> Wordings:
    """Return which set of wordings the simulator's reports of a split are in."""
    return "held_out" if split == "test" else "train"


def texts_of(reports: Sequence[tuple[str, ...]]) -> list[str]:
    """Return every report as one text."""
    return [" ".join(sentences) for sentences in reports]
