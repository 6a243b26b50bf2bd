"""Figures of a model on the test splits of what its decoders were trained on."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..align.embed import embed_texts
from ..align.retrieval import KS, retrieval
from ..align.stage import heads_with_report
from ..config import ConfigError, override_config
from ..data.sample import KINDS
from ..metrics import auroc, rounded
from ..model.recipe import RecipeConfig
from ..model.scope import Scope
from ..model.text import TextTower
from ..progress import Progress
from ..scope import ScopeConfig
from ..sources import SourceConfig
from ..text.tokenizer import load_tokenizer
from ..weights import SCOPE, Weights, check_patients
from .contract import Decoder
from .registry import SEGMENTATION
from .splits import EncodedSplit, best_device, encode_others, encode_split
from .stage import answer_rows

POOL = 512  # pairs that recall is measured among, at most


def change_sources(config: RecipeConfig, overrides: Sequence[str]) -> RecipeConfig:
    """Return a configuration whose sources have other values, each given as ``source.key=value``.

    Raises
    ------
    ConfigError
        Naming the key; also where recorded patients would be drawn into other splits than they were trained in.
    """
    for override in overrides:
        if not override.startswith("source."):
            raise ConfigError(f"{override!r}: expected source.KEY=VALUE; the model itself cannot be changed")
    changed = {name: _changed(source, overrides, name) for name, source in config.sources.items()}
    scope = config.scope_source and _changed(config.scope_source, overrides, "scope")
    return replace(config, sources=changed, scope_source=scope)


def _changed(source: SourceConfig, overrides: Sequence[str], name: str) -> SourceConfig:
    changed = override_config(source, overrides, "source")
    try:
        changed.check_splits(source, name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return changed


def evaluate_model(weights: Weights, folder: Path, cache_dir: Path, progress: Progress) -> dict[str, Any]:
    """Return the figures of every decoder, of the scope, and of retrieval by words, as plain JSON types.

    Parameters
    ----------
    weights : Weights
    folder : Path
        That they were read from: where the tokenizer is.
    cache_dir : Path
        Where series and tokens are kept; those that are not there are made.
    progress : Progress

    Raises
    ------
    ConfigError
        Where the model was trained on a patient of a test split.
    """
    model, config = weights.model, weights.config
    encoder = model.requires_grad_(False).eval().to(best_device()).encoder
    tests: dict[str, EncodedSplit] = {}
    alike: dict[str, SourceConfig] = {}  # each is listed once

    def test_of(source: SourceConfig, *decoders: str) -> EncodedSplit:
        key = repr(source)
        source = alike.setdefault(key, source)
        check_patients(source, weights.metadata, str(folder), "test", decoders=decoders)
        if key not in tests:
            tests[key] = encode_split(encoder, source, "test", cache_dir, config.workers, progress)
        return tests[key]

    figures: dict[str, Any] = {}
    for described in config.decoders:
        name = described.name
        source = config.sources[name]
        if described.kind == SEGMENTATION and described.target != source.label_map:
            progress.warn(
                f"{name}: not measured: its target is {described.target!r}, and what the source has is "
                f"{source.label_map!r}"
            )
            figures[name] = None
            continue
        test, sight = test_of(source, name, described.upon), model.sights.get(name)
        if sight:
            test = test.sighted(sight, cache_dir, progress)
        decoder = typing.cast("Decoder", model.decoders[name])
        rows = answer_rows(decoder, test.tokens, test.examples)
        figures[name] = decoder.figures(rows) if rows else None
    if model.scope is not None and config.scope is not None and config.scope_source is not None:
        tests_of_scope = [test_of(config.scope_source, SCOPE)]
        if config.scope.others:
            count = test_count(config.scope)
            tests_of_scope.append(
                encode_others(encoder, count, config.scope_source, "test", cache_dir, config.workers, progress)
            )
        figures["scope"] = scope_figures(model.scope, tests_of_scope)
    if model.text is not None:
        figures |= _retrieval(model.text, folder, list(tests.values()))
    return figures


def _retrieval(text: TextTower, folder: Path, tests: Sequence[EncodedSplit]) -> dict[str, Any]:
    """Return recall between heads and their whole reports in the first source that has enough of them."""
    for test in tests:
        members = heads_with_report(test.examples, POOL)
        if len(members) >= max(KS):
            texts = [" ".join(test.examples.facts(i).report) for i in members]
            embedded = embed_texts(text, load_tokenizer(folder, text.config.max_tokens), texts)
            return {"retrieval": retrieval(test.tokens.embedding[members], embedded, texts).to_json()}
    return {}


def test_count(scope: ScopeConfig) -> int:
    """Return how many series that are no heads the refusals are measured on."""
    return max(1, scope.others // 4)


def scope_figures(scope: Scope, splits: Sequence[EncodedSplit]) -> dict[str, Any]:
    """Return the share of heads refused, that of each other kind, and the area under the ROC curve."""
    embedding = np.concatenate([split.tokens.embedding for split in splits])
    kinds = np.array([known.kind for split in splits for known in split.tokens.known])
    with torch.no_grad():
        score = scope.cpu()(torch.from_numpy(embedding)).numpy()
    head, refused = kinds == "head", score < 0
    return {
        "series": len(score),
        "heads_refused": _share(refused[head]),
        "others_refused": {k: _share(refused[kinds == k]) for k in KINDS if k != "head" and (kinds == k).any()},
        "auroc": rounded(auroc(head, score)) if len(score) else None,
    }


def _share(refused: NDArray[np.bool_]) -> float | None:
    return rounded(float(refused.mean())) if len(refused) else None
