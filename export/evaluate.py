"""What a reduced precision costs: every head's metric on simulated series that no one trained on, beside fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from decipher_rt.engines import Engine, load_engine
from decipher_rt.errors import EngineError
from decipher_rt.manifest import Head, Manifest, Numerics, Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor
from decipher_rt.series import ReadOptions, find_series, read_series
from decipher_rt.tokens import select_tokens
from decipher_rt.train.decoders.registry import kind_of
from decipher_rt.train.first_config import FirstConfig
from decipher_rt.train.model.heads import LESION, SEQUENCES
from decipher_rt.train.model.recipe import RecipeConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.samples import SHARD, Samples, SampleSource, Split, make_samples
from decipher_rt.train.sources import SourceConfig, open_source
from decipher_rt.train.views import UNIT_WINDOW
from decipher_rt.verify import MIN_EMBEDDING_COSINE

from .runnable import runnable_encoders, write_files

Arrays = Mapping[str, NDArray[Any]]

CALIBRATION_SERIES = SHARD  # they are simulated by the shard


@dataclass(frozen=True)
class KnownSeries:
    """One preprocessed series as the encoder takes it, and the true label of each head that has one for it."""

    inputs: Arrays
    truth: Mapping[str, str]


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
        In percent: accuracy of a head, or area under the ROC curve where it has two labels.
    """

    embedding_cosine: float
    patch_cosine: float
    patch_max_error: float
    metrics: Mapping[str, float]


def known_series(
    config: FirstConfig | RecipeConfig, split: Split, count: int, cache: Path, progress: Progress
) -> Iterator[KnownSeries]:
    """Yield the first series of a split of what the model was trained on, made where they are not in the cache.

    Parameters
    ----------
    config : FirstConfig or RecipeConfig
        Of the model: it says where its series come from.
    split : "train", "validation" or "test"
    count : int
    cache : Path
        The folder that ``decipher-rt evaluate`` uses too.
    progress : Progress
    """
    if isinstance(config, RecipeConfig):
        yield from _recipe_series(config, split, count, cache, progress)
        return
    spec = config.encoder.preprocessing
    source = SampleSource(config.seed, config.samples.not_heads, spec)
    with progress.bar(f"simulating {split}", count) as advance_to:
        samples: Samples = make_samples(source, split, count, cache, config.workers, advance_to)
    for index in range(count):
        series = samples[index]
        volume = series.volume.astype(np.float32)
        truth = {"sequence": SEQUENCES[series.sequence], "lesion": LESION[series.lesion]} if series.head else {}
        yield KnownSeries(_inputs(Grid(volume, UNIT_WINDOW, np.eye(4)), spec), truth)


def _recipe_series(
    config: RecipeConfig, split: Split, count: int, cache: Path, progress: Progress
) -> Iterator[KnownSeries]:
    """Yield ``count`` series of every source, each with the truth for the heads that were trained on that source."""
    spec, seen = config.encoder.preprocessing, list[SourceConfig]()
    classified = [d for d in config.decoders if kind_of(d.kind).answer == "classification"]
    for source in (config.sources[decoder.name] for decoder in classified):
        if source in seen:
            continue
        seen.append(source)
        targets = {d.name: d.target for d in classified if config.sources[d.name] == source}
        examples = open_source(source, spec, split, cache, config.threads, progress)
        for index in range(min(count, len(examples))):
            example = examples[index]
            truth = {name: str(example.labels[t]) for name, t in targets.items() if t in example.labels}
            yield KnownSeries(_inputs(Grid(example.volume.astype(np.float32), UNIT_WINDOW, np.eye(4)), spec), truth)


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
            yield KnownSeries(_inputs(preprocess(read_series(found, options)), spec), {})


def calibration_inputs(
    config: FirstConfig | RecipeConfig, paths: Sequence[Path], cache: Path, progress: Progress
) -> list[Arrays]:
    """Return what int8 is calibrated on: heads of the training split, and the real series under ``paths``."""
    trained_on = known_series(config, "train", CALIBRATION_SERIES, cache, progress)
    heads = [known.inputs for known in trained_on if known.truth]
    return heads + [known.inputs for known in real_series(paths, config.encoder.preprocessing)]


def _inputs(grid: Grid, spec: Preprocessing) -> Arrays:
    tokens = select_tokens(grid, spec).indices
    window = np.asarray(grid.window, np.float32)
    return {"volume": grid.volume[None, None], "window": window[None], "tokens": tokens[None]}


def judge_encoders(
    files: Mapping[str, bytes | Path], manifest: Manifest, numerics: Sequence[Numerics], judge: Judge
) -> tuple[Numerics, ...]:
    """Complete what is known of each encoder by the evaluation series.

    Parameters
    ----------
    files : mapping
        The bundle's content.
    manifest : Manifest
    numerics : sequence
        Of the golden case, from ``check_graphs``; fp32 first.
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
        heads = [
            (head, load_engine("onnxruntime", folder / head.file, precision="fp32"))
            for head in manifest.heads
            if head.kind == "classification"
        ]
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


def evaluate_encoders(
    reference: Engine,
    encoders: Sequence[Engine],
    heads: Sequence[tuple[Head, Engine]],
    series: Iterator[KnownSeries],
) -> tuple[Figures, tuple[Figures, ...]]:
    """Run encoders and heads on the same series.

    Parameters
    ----------
    reference : Engine
        The fp32 encoder.
    encoders : sequence of Engine
        What is compared with it.
    heads : sequence
        Each head of the bundle with its graph; those that are no classification are left out.
    series : iterator

    Returns
    -------
    reference, others
        Figures of the reference, and of the encoders in order.

    Raises
    ------
    EngineError
        If for some head no series has a truth.
    """
    everything = (reference, *encoders)
    cosines = [[(1.0, 1.0, 0.0)] for _ in everything]
    heads = [(head, engine) for head, engine in heads if head.kind == "classification"]
    truths: dict[str, list[int]] = {head.name: [] for head, _ in heads}
    answers: list[dict[str, list[NDArray[np.floating]]]] = [{head.name: [] for head, _ in heads} for _ in everything]
    for known in series:
        asked = [(head, engine) for head, engine in heads if known.truth.get(head.name) in head.labels]
        for head, _ in asked:
            truths[head.name].append(head.labels.index(known.truth[head.name]))
        exact = reference.run(known.inputs)
        for place, encoder in enumerate(everything):
            encoded = exact if place == 0 else encoder.run(known.inputs)
            cosines[place].append(_difference(encoded, exact))
            features = {**encoded, "tokens": known.inputs["tokens"]}
            for head, engine in asked:
                output = engine.run({name: features[name] for name in engine.inputs})
                answers[place][head.name].append(output["probabilities"][0])
    empty = [name for name, known_truths in truths.items() if not known_truths]
    if empty:
        raise EngineError(f"the evaluation series have no truth for {', '.join(empty)}; evaluate on more series")
    figures = []
    for seen, given in zip(cosines, answers, strict=True):
        embedding, patch, error = zip(*seen, strict=True)
        metrics = {name: _metric(np.array(given[name]), np.array(truth)) for name, truth in truths.items()}
        figures.append(Figures(min(embedding), min(patch), max(error), metrics))
    return figures[0], tuple(figures[1:])


def _refuse(encoder: str, reference: Figures, figures: Figures, max_drop: float) -> None:
    lost = [
        f"{name} falls from {before:.2f} to {figures.metrics[name]:.2f} % (allowed {max_drop:g} points)"
        for name, before in reference.metrics.items()
        if before - figures.metrics[name] > max_drop
    ]
    if figures.embedding_cosine < MIN_EMBEDDING_COSINE:
        lost.append(f"an embedding has cosine {figures.embedding_cosine:.4f} to fp32 (at least {MIN_EMBEDDING_COSINE})")
    if lost:
        raise EngineError(f"the {encoder} encoder loses too much, no bundle was written: {'; '.join(lost)}")


def _difference(encoded: Arrays, exact: Arrays) -> tuple[float, float, float]:
    """Return the smallest cosines of embedding and tokens, and the tokens' largest error; a NaN is as far as can be."""
    found = []
    for name in ("embedding", "patch"):
        a, b = encoded[name].astype(np.float64), exact[name].astype(np.float64)
        cosine = (a * b).sum(axis=-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
        found.append(float(np.nan_to_num(cosine, nan=-1.0).min()))
    error = float(np.nan_to_num(np.abs(encoded["patch"] - exact["patch"]), nan=np.inf).max())
    return found[0], found[1], error


def _metric(probabilities: NDArray[np.floating], truth: NDArray[np.int64]) -> float:
    probabilities = np.nan_to_num(probabilities, nan=0.0)
    if probabilities.shape[1] == 2 and 0 < truth.mean() < 1:
        return 100 * float(roc_auc_score(truth, probabilities[:, 1]))
    return 100 * float((probabilities.argmax(axis=1) == truth).mean())
