"""What a decoder can learn from what is known of series, before any of them is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..model.vit import ViTConfig
from ..progress import Progress
from ..samples import Split
from ..sources import Row, SourceConfig, listed_rows
from ..sources.rows import number
from .contract import Decoder, Known, label_text
from .registry import DecoderConfig, build_decoder
from .tokens import known_of

MOST_NAMED, LONGEST_LABEL = 5, 40  # labels in a message, and characters of each
HELD_OUT: dict[Split, str] = {"validation": "calibrated", "test": "measured"}  # what is done on each


def known_series(decoder: Decoder, known: Sequence[Known]) -> NDArray[np.int64]:
    """Return the numbers of the series whose truth is known."""
    return np.array([i for i, one in enumerate(known) if decoder.knows(one)], np.int64)


def require_truth(decoder: Decoder, known: Sequence[Known]) -> NDArray[np.int64]:
    """Return the numbers of the series of the train split whose truth is known.

    Raises
    ------
    ValueError
        Naming the key, where they cannot teach what the decoder shall answer.
    """
    numbers = known_series(decoder, known)
    if not len(numbers):
        found = _labels(decoder, known)
        values = f"; the labels {_label_name(decoder)!r} are {', '.join(sorted(found))[:120]}" if found else ""
        raise ValueError(f"decoder.target: no series of the train split has the truth that it needs{values}")
    decoder.check_truth([known[i] for i in numbers])
    return numbers


def check_listed(
    config: DecoderConfig, source: SourceConfig, encoder: ViTConfig, beside: int, progress: Progress
) -> None:
    """Check what a manifest or BIDS folder lists, which takes no time; say which labels teach nothing.

    Also say where the decoder can be neither calibrated (validation) nor measured (test).

    Raises
    ------
    ValueError
        As ``require_truth``, or where the decoder's configuration does not fit.
    SourceError
        Where a split has no series.
    """
    listed = listed_rows(source, "train")
    if listed is None:
        return
    decoder = build_decoder(config, encoder, beside)
    known = [_known(row) for row in listed]
    try:
        require_truth(decoder, known)
    except ValueError as error:
        raise ValueError(f"{error}{_why_text(decoder, source)}") from None
    others = _labels(decoder, [one for one in known if not decoder.knows(one)])
    if others:
        named = ", ".join(f"{label[:LONGEST_LABEL]!r} ({count})" for label, count in others.most_common(MOST_NAMED))
        more = ", ..." if len(others) > MOST_NAMED else ""
        progress.warn(
            f"decoder {config.name}: {others.total()} of {len(known)} series of the train split teach nothing, as "
            f"their {_label_name(decoder)!r} is another: {named}{more}"
        )
    for split, what in HELD_OUT.items():
        if not any(decoder.knows(_known(row)) for row in listed_rows(source, split) or []):
            progress.warn(
                f"decoder {config.name}: no series of the {split} split has the truth that it needs: it is not {what}"
            )


def warn_of_boxes(
    name: str, split: Split, known: Sequence[Known], grid_shape: Sequence[int], progress: Progress
) -> None:
    """Say where the boxes of series lie outside their grids: as present is taught what cannot be seen."""
    half = np.asarray(grid_shape) / 2
    off = 0
    for one in known:
        if one.boxes is None or not len(one.boxes):
            continue
        away = np.abs(one.boxes[:, :3] - (half - 0.5)) - one.boxes[:, 3:] / 2 >= half
        off += bool(away.any(axis=1).all())
    if off:
        progress.warn(
            f"decoder {name}: all boxes of {off} series of the {split} split lie outside the grid, where nothing "
            "of them is seen: they are in mm, LPS, of the patient as the series has it"
        )


def _known(row: Row) -> Known:
    """Return what is known of a series that is listed; where its boxes lie on the grid, nobody knows yet."""
    return known_of(row.facts, np.eye(4), tissue=row.mask is not None)


def _why_text(decoder: Decoder, source: SourceConfig) -> str:
    """Say which cell makes a label text that a regression needs as a number; nothing where none does."""
    if decoder.answer != "regression":
        return ""
    name = _label_name(decoder)
    for row in listed_rows(source) or []:
        label = row.facts.labels.get(name)
        if isinstance(label, str) and number(label) is None:
            return (
                f"; a label is a number only where all its cells are, and in {row.place} it is "
                f"{label[:LONGEST_LABEL]!r}: leave empty what is unknown"
            )
    return ""


def _label_name(decoder: Decoder) -> str:
    """Return the name of the label that a decoder learns; empty where it learns masks or boxes."""
    return str(getattr(decoder, "name", "")) if decoder.answer in ("classification", "regression") else ""


def _labels(decoder: Decoder, known: Sequence[Known]) -> Counter[str]:
    name = _label_name(decoder)
    return Counter(label_text(one.labels[name]) for one in known if name in one.labels)
