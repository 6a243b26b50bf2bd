"""What a reduced precision costs: every head's figures on series that no one trained on, beside fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.engines import Engine
from decipher_rt.errors import EngineError
from decipher_rt.manifest import Manifest, Numerics
from decipher_rt.train.decoders.contract import Decoder, Rows, seen_as_encoder
from decipher_rt.train.decoders.kinds.segmentation import Segmentation
from decipher_rt.train.decoders.sight import Sight
from decipher_rt.verify import MIN_EMBEDDING_COSINE

from .known import Arrays, KnownSeries
from .parts import HeadPart
from .runnable import runnable_encoders, write_files


@dataclass(frozen=True)
class Judge:
    """What reduced precisions are judged on.

    Attributes
    ----------
    series : callable
        Gives the evaluation series.
    max_drop : float
        Points of a head's metric that an encoder may lose against fp32.
    """

    series: Callable[[], Iterator[KnownSeries]]
    max_drop: float = 0.5


@dataclass(frozen=True)
class Figures:
    """One encoder on the evaluation series.

    Attributes
    ----------
    embedding_cosine, patch_cosine : float
        Smallest to the fp32 encoder's, over all series and all their tokens.
    patch_max_error : float
    metrics : mapping
        In points of a hundred, as ``points`` says.
    series : mapping
        Number of those that each metric is of.
    """

    embedding_cosine: float
    patch_cosine: float
    patch_max_error: float
    metrics: Mapping[str, float]
    series: Mapping[str, int]


def judge_encoders(
    files: Mapping[str, bytes | Path],
    manifest: Manifest,
    numerics: Sequence[Numerics],
    heads: Sequence[HeadPart],
    judge: Judge,
) -> tuple[Numerics, ...]:
    """Complete what is known of each encoder by the evaluation series.

    Parameters
    ----------
    files : mapping
        The bundle's content.
    manifest : Manifest
    numerics : sequence
        Of the golden case, from ``check_graphs``; fp32 first.
    heads : sequence of HeadPart
        Of the model; their graphs were compared with them.
    judge : Judge

    Raises
    ------
    EngineError
        If an encoder loses more than it may of a head's metric, or its embeddings are further than
        ``MIN_EMBEDDING_COSINE`` from fp32: with the numbers.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, files)
        loaded = {(entry.target, entry.precision): engine for entry, engine in runnable_encoders(folder, manifest)}
        encoders = [loaded[row.target, row.precision] for row in numerics]
        reference, others = evaluate_encoders(encoders[0], encoders[1:], heads, judge.series())
    judged = []
    for row, figures in zip(numerics, (reference, *others), strict=True):
        _refuse(f"{row.target} {row.precision}", reference, figures, judge.max_drop)
        judged.append(
            replace(
                row,
                embedding_cosine=min(row.embedding_cosine, figures.embedding_cosine),
                patch_cosine=figures.patch_cosine,
                patch_max_error=max(row.patch_max_error, figures.patch_max_error),
                metrics={name: round(value, 2) for name, value in figures.metrics.items()},
            )
        )
    return tuple(judged)


@torch.no_grad()
def evaluate_encoders(
    reference: Engine, encoders: Sequence[Engine], heads: Sequence[HeadPart], series: Iterator[KnownSeries]
) -> tuple[Figures, tuple[Figures, ...]]:
    """Run encoders and heads on the same series.

    Parameters
    ----------
    reference : Engine
        The fp32 encoder.
    encoders : sequence of Engine
        What is compared with it.
    heads : sequence of HeadPart
        Of every kind; the decoders' own figures are what is compared.
    series : iterator

    Returns
    -------
    reference, others
        Figures of the reference, and of the encoders in order.

    Raises
    ------
    EngineError
        If for some head no series has a truth, or all the same one.
    """
    everything = (reference, *encoders)
    differences = [[(1.0, 1.0, 0.0)] for _ in everything]
    rows: list[dict[str, list[Rows]]] = [{part.entry.name: [] for part in heads} for _ in everything]
    for one in series:
        known = one.known
        asked = [part for part in heads if known and part.entry.name in one.heads and part.decoder.knows(known)]
        exact = reference.run(one.inputs)
        for place, encoder in enumerate(everything):
            encoded = exact if place == 0 else encoder.run(one.inputs)
            differences[place].append(_difference(encoded, exact))
            given = _Given(encoded, one)
            for part in asked:
                rows[place][part.entry.name].append(given.rows(part))
    figures = []
    for seen, found in zip(differences, rows, strict=True):
        embedding, patch, error = zip(*seen, strict=True)
        figures.append(Figures(min(embedding), min(patch), max(error), *_metrics(heads, found)))
    return figures[0], tuple(figures[1:])


def points(decoder: Decoder, figures: Mapping[str, Any]) -> dict[str, float]:
    """Return what a head is judged by, in points of a hundred, by what follows the head's name.

    Classification: area under the ROC curve of two labels, accuracy of more. Regression: R squared. Segmentation: Dice,
    the mean over labels. Localisation: area under the ROC curve of presence, and the overlap (IoU) of the best box.
    What the series cannot tell, such as an area of one class, is left out.
    """
    found: dict[str, float | None]
    if decoder.answer == "classification":
        area = figures["auroc"] if len(decoder.labels) == 2 else None
        found = {"": figures["accuracy"] if area is None else area}
    elif decoder.answer == "regression":
        found = {"": figures["r_squared"]}
    elif decoder.answer == "segmentation":
        dices = [dice for dice in figures["dice"].values() if dice is not None]
        found = {"": sum(dices) / len(dices) if dices else None}
    else:
        found = {"": figures["presence_auroc"], " IoU": figures["iou"]}
    return {name: 100 * value for name, value in found.items() if value is not None}


def _metrics(heads: Sequence[HeadPart], rows: Mapping[str, Sequence[Rows]]) -> tuple[dict[str, float], dict[str, int]]:
    """Return every metric, and the number of series that it is of."""
    metrics: dict[str, float] = {}
    series: dict[str, int] = {}
    for part in heads:
        name, of_head = part.entry.name, rows[part.entry.name]
        joined = {key: np.concatenate([row[key] for row in of_head]) for key in (of_head[0] if of_head else ())}
        told = points(part.decoder, part.decoder.figures(joined)) if joined else {}
        if not told:
            raise EngineError(
                f"the evaluation series have no truth to judge {name} by; evaluate on more with --evaluate, or on "
                "none with --evaluate 0"
            )
        metrics |= {f"{name}{what}": value for what, value in told.items()}
        series |= {f"{name}{what}": len(of_head) for what in told}
    return metrics, series


class _Given:
    """What the decoders are given of one series by one encoder."""

    def __init__(self, encoded: Arrays, one: KnownSeries) -> None:
        self._patch, self._embedding = (torch.from_numpy(_finite(encoded[name])) for name in ("patch", "embedding"))
        self._tokens, volume, window = (torch.from_numpy(one.inputs[name]) for name in ("tokens", "volume", "window"))
        self._image, self._one = seen_as_encoder(volume, window), one
        self._features: dict[Segmentation, Tensor] = {}  # looking at voxels takes longest
        self._sighted: dict[Sight, Tensor] = {}

    def rows(self, part: HeadPart) -> Rows:
        """Return what the figures of a head need of the series."""
        decoder, tokens, one = part.decoder, self._tokens, self._one
        if one.known is None:
            raise ValueError("nothing is known of the series")
        truth = decoder.target(one.known, one.tissue if decoder.reads_tissue else None, tokens[0].numpy())
        target = {name: torch.from_numpy(np.stack([values])) for name, values in truth.items()}
        if isinstance(decoder, Segmentation):
            raw = decoder.raw_from(self._seen_by(decoder), tokens, decoder.patch_grid)
        else:
            patch = self._beside(part.sight) if part.sight else self._patch
            raw = decoder.raw(patch, tokens, self._embedding, self._image if decoder.reads_image else None)
        return decoder.rows(raw, target, tokens)

    def _seen_by(self, segmentation: Segmentation) -> Tensor:
        if segmentation not in self._features:
            image = self._image if segmentation.reads_image else None
            self._features[segmentation] = segmentation.features(self._patch, self._tokens, image)
        return self._features[segmentation]

    def _beside(self, sight: Sight) -> Tensor:
        if sight not in self._sighted:
            seen = self._seen_by(sight.segmentation)
            self._sighted[sight] = sight.beside(self._patch, self._tokens, seen)
        return self._sighted[sight]


def _finite(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an output with 0 for what is no number: such an encoder is refused by its cosine, with all the figures."""
    return np.where(np.isfinite(array), array, np.float32(0))


def _refuse(encoder: str, reference: Figures, figures: Figures, max_drop: float) -> None:
    lost = [
        f"{name} falls from {before:.2f} to {figures.metrics[name]:.2f} % on {figures.series[name]} series (allowed "
        f"{max_drop:g} points)"
        for name, before in reference.metrics.items()
        if before - figures.metrics[name] > max_drop
    ]
    hint = "; --max-drop allows more, --evaluate 0 judges nothing" if lost else ""
    if figures.embedding_cosine < MIN_EMBEDDING_COSINE:
        lost.append(f"an embedding has cosine {figures.embedding_cosine:.4f} to fp32 (at least {MIN_EMBEDDING_COSINE})")
    if lost:
        raise EngineError(f"the {encoder} encoder loses too much, no bundle was written: {'; '.join(lost)}{hint}")


def _difference(encoded: Arrays, exact: Arrays) -> tuple[float, float, float]:
    """Return the smallest cosines of embedding and tokens, and the tokens' largest error; a NaN is as far as can be."""
    found = []
    for name in ("embedding", "patch"):
        a, b = encoded[name].astype(np.float64), exact[name].astype(np.float64)
        cosine = (a * b).sum(axis=-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
        found.append(float(np.nan_to_num(cosine, nan=-1.0).min()))
    error = float(np.nan_to_num(np.abs(encoded["patch"] - exact["patch"]), nan=np.inf).max())
    return found[0], found[1], error
