"""What of a trained model goes into a bundle: the modules that become graphs, each with its entry in the manifest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

import yaml
from torch import nn

from decipher_rt.errors import EngineError
from decipher_rt.head_graphs import OUTPUTS
from decipher_rt.manifest import Encoder, Head, Preprocessing, Scope, Text
from decipher_rt.train.config import dump_config
from decipher_rt.train.decoders.contract import Decoder
from decipher_rt.train.decoders.sight import Sight
from decipher_rt.train.model.recipe import RecipeConfig, RecipeModel
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.weights import Weights

from .answering import Answering

TEXT_GRAPH, TOKENIZER = "text.onnx", "tokenizer.json"
USEFUL_AUROC, USEFUL_R_SQUARED, USEFUL_DICE = 0.7, 0.2, 0.3  # a head below them is described with a warning
JUDGED = ("auroc", "presence_auroc", "r_squared")  # beside the Dice of each label
NOT_MEASURED = " NOT TO BE RELIED ON: not measured on held-out series."
SCOPE_GRAPH = "scope.onnx"
# What the golden case says of the text tower; words that any report of a head holds.
PROMPTS = (
    "T1-weighted image of the head.",
    "FLAIR image with a lesion in the left frontal lobe.",
    "No lesion is seen.",
)
SHORTEST_PROMPT = "a"  # for a tower that reads fewer tokens than any of them has


@dataclass(frozen=True)
class HeadPart:
    """A head as training knows it: by its decoder's figures a reduced precision is judged.

    ``sight`` is what the decoder finds beside the tokens, where it stands upon a segmentation.
    """

    entry: Head
    decoder: Decoder
    sight: Sight | None = None

    @property
    def output(self) -> str:
        """Name of what its graph gives."""
        return OUTPUTS[self.entry.kind]


@dataclass(frozen=True)
class GraphPart:
    """The graph of one head or of several: ``module`` gives what they answer, in their order."""

    file: str
    heads: tuple[HeadPart, ...]
    module: Answering


@dataclass(frozen=True)
class ScopePart:
    """The scope: ``module`` takes the embedding (B, E), gives the score (B,)."""

    entry: Scope
    module: nn.Module


@dataclass(frozen=True)
class TextPart:
    """The text tower: ``module`` takes ids and mask (B, T), gives embeddings (B, E); ``tokenizer`` is its JSON."""

    entry: Text
    module: nn.Module
    tokenizer: bytes


@dataclass(frozen=True)
class Parts:
    """A trained model, taken apart.

    Attributes
    ----------
    name, version, licence, intended_use : of the model; the last two empty where they are not stated
    spec : Preprocessing, without graphs
    encoder, described : the module, and its entry in the manifest
    heads, scope, text : what else there is
    graphs : of the heads
    metrics : of the training's evaluation
    provenance : configuration and training, as plain JSON types
    """

    name: str
    version: str
    licence: str
    intended_use: str
    spec: Preprocessing
    encoder: ViT
    described: Encoder
    heads: tuple[HeadPart, ...]
    graphs: tuple[GraphPart, ...]
    scope: ScopePart | None
    text: TextPart | None
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]


def parts_of(weights: Weights, tokenizer: bytes | None = None, *, text_tolerance: float = Text.tolerance) -> Parts:
    """Take a trained model apart.

    Parameters
    ----------
    weights : Weights
        From ``load_weights``.
    tokenizer : bytes, optional
        ``tokenizer.json`` of a model with a text tower.
    text_tolerance : float
        What the manifest is to allow the tower, by how it is stored.

    Raises
    ------
    EngineError
        If there is a text tower and no tokenizer.
    """
    model, config, metrics = weights.model.eval(), weights.config, weights.metadata.get("metrics", {})
    encoder, heads = model.encoder, _heads(model, config, metrics)
    return Parts(
        name=config.name,
        version=config.version,
        licence=config.licence,
        intended_use=config.intended_use,
        spec=config.encoder.preprocessing,
        encoder=encoder,
        described=Encoder(
            width=config.encoder.width,
            embedding_size=config.encoder.embedding_size,
            parameters=sum(p.numel() for p in encoder.parameters()),
            config=dataclasses.asdict(config.encoder),
        ),
        heads=heads,
        graphs=_graphs(heads),
        scope=_scope(model, config),
        text=_text(model, config, tokenizer, text_tolerance),
        metrics=metrics,
        provenance={
            "config": _told(config),
            "training": weights.metadata.get("provenance", {}),
        },
    )


def _told(config: RecipeConfig) -> dict[str, Any]:
    """Return a configuration as plain JSON types; of files of this machine it tells the name, not where they lie."""
    document: dict[str, Any] = yaml.safe_load(dump_config(config))
    for source in (*document["sources"].values(), document["scope_source"] or {}):
        source |= {key: PurePath(source[key]).name for key in ("path", "anatomy") if key in source}
    return document


def unreliable(figures: Mapping[str, Any] | None) -> str:
    """Return the warning that goes with a head's answers where its figures on held-out series are poor, or nothing.

    Parameters
    ----------
    figures : mapping or None
        ``auroc``, ``presence_auroc``, ``r_squared`` or ``dice`` by label, as the evaluation gives them; None where no
        held-out series has the truth, or for a figure where what they have cannot tell it, as one label alone.
    """
    if figures is None:
        return NOT_MEASURED
    by_label = figures.get("dice")
    dices = by_label if isinstance(by_label, Mapping) else {}
    judged = [figures[name] for name in JUDGED if name in figures] + [*dices.values()]
    if judged and all(figure is None for figure in judged):
        return NOT_MEASURED
    aurocs = [figures[name] for name in ("auroc", "presence_auroc") if figures.get(name) is not None]
    if aurocs and min(aurocs) < USEFUL_AUROC:
        return f" NOT TO BE RELIED ON: AUROC {min(aurocs):.2f} on held-out series, where chance gives 0.50."
    explained = figures.get("r_squared")
    if explained is not None and explained < USEFUL_R_SQUARED:
        return f" NOT TO BE RELIED ON: explains {max(explained, 0):.0%} of the variance of held-out series."
    poor = {label: dice for label, dice in dices.items() if dice is None or dice < USEFUL_DICE}
    if poor:
        said = ", ".join(f"{x} ({'not measured' if d is None else f'Dice {d:.2f}'})" for x, d in poor.items())
        return f" NOT TO BE RELIED ON for {said} on held-out series."
    return ""


def _heads(model: RecipeModel, config: RecipeConfig, metrics: Mapping[str, Any]) -> tuple[HeadPart, ...]:
    """Every decoder; what it answers is its own to say.

    One that stands upon a segmentation shares its graph, where that does not give such an answer yet.
    """
    parts: list[HeadPart] = []
    for described in config.decoders:
        decoder = cast("Decoder", model.decoders[described.name])
        file = f"heads/{described.upon or described.name}.onnx"
        if any(part.entry.file == file and part.entry.kind == decoder.answer for part in parts):
            file = f"heads/{described.name}.onnx"
        entry = Head(
            name=described.name,
            kind=decoder.answer,
            file=file,
            description=described.description + unreliable(metrics.get(described.name)),
            labels=tuple(decoder.labels),
            unit=decoder.unit,
            stride=int(decoder.stride),
            threshold=float(getattr(decoder, "threshold", Head.threshold)),
        )
        parts.append(HeadPart(entry, decoder, model.sights.get(described.name)))
    return tuple(parts)


def _graphs(heads: Sequence[HeadPart]) -> tuple[GraphPart, ...]:
    graphs = []
    for file in dict.fromkeys(head.entry.file for head in heads):
        members = tuple(head for head in heads if head.entry.file == file)
        sight = next((head.sight for head in members if head.sight), None)
        graphs.append(GraphPart(file, members, Answering([head.decoder for head in members], sight)))
    return tuple(graphs)


def _scope(model: RecipeModel, config: RecipeConfig) -> ScopePart | None:
    if model.scope is None or config.scope is None:
        return None
    distance = {"mahalanobis": "Mahalanobis", "nearest": "nearest-neighbour"}[config.scope.method]
    method = f"mean of {distance} and outlier-exposure margins" if config.scope.outliers else f"{distance} margin"
    entry = Scope(SCOPE_GRAPH, method, 0.0, body_parts=config.scope.body_parts, subject=config.subject)
    return ScopePart(entry, model.scope)


def _text(model: RecipeModel, config: RecipeConfig, tokenizer: bytes | None, tolerance: float) -> TextPart | None:
    if model.text is None or config.text is None:
        return None
    if tokenizer is None:
        raise EngineError(f"the model has a text tower and its folder no {TOKENIZER}; copy it from the text stage")
    scale = math.exp(model.logit_scale.item())
    entry = Text(TEXT_GRAPH, TOKENIZER, config.text.max_tokens, scale, tolerance)
    return TextPart(entry, model.text, tokenizer)
