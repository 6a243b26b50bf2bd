"""The reports that the text encoder is pretrained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decipher_rt.manifest import Preprocessing

from ..config import ConfigError
from ..data.scene import draw_scene
from ..progress import Progress
from ..samples import Split, sample_seed
from ..sources import SourceConfig, open_source
from ..sources.anatomy import base_anatomy
from .findings import scene_findings
from .wordings import Wordings, write_report


def read_reports(
    source: SourceConfig, split: Split, count: int, spec: Preprocessing, cache_dir: Path, workers: int,
    progress: Progress,
) -> list[tuple[str, ...]]:  # fmt: skip
    """Return the reports of a split, sentences each, without those that are empty.

    Parameters
    ----------
    source : SourceConfig
        The simulator draws scenes and puts them into words, and computes no image. A manifest's reports are read as
        its examples are opened, which puts their images on the grid first.
    count : int
        Reports that the simulator draws.
    spec, cache_dir, workers : as for `decipher_rt.train.sources.open_source`

    Raises
    ------
    ConfigError
        If the source has no report.
    """
    if source.kind == "simulator":
        return draw_reports(source, split, count, progress)
    examples = open_source(source, spec, split, cache_dir, workers, progress)
    found = [facts.report for i in range(len(examples)) if (facts := examples.facts(i)).report]
    if not found:
        raise ConfigError(f"{source.path}: no series of the {split} split has a report; give some a report column")
    return found


def draw_reports(source: SourceConfig, split: Split, count: int, progress: Progress) -> list[tuple[str, ...]]:
    """Draw reports of the simulator. The test split's are in the wordings that are held out."""
    anatomy = base_anatomy(source.anatomy, source.heads)
    reports = []
    with progress.bar(f"drawing {split} reports", count) as advance_to:
        for index in range(count):
            seed = sample_seed(source.seed, split, index)
            reports.append(write_report(scene_findings(draw_scene(seed, anatomy)), seed, wordings_of(split)))
            advance_to(index + 1)
    return reports


def wordings_of(split: Split) -> Wordings:
    """Return which set of wordings the simulator's reports of a split are in."""
    return "held_out" if split == "test" else "train"


def texts_of(reports: Sequence[tuple[str, ...]]) -> list[str]:
    """Return every report as one text."""
    return [" ".join(sentences) for sentences in reports]
