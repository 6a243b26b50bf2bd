"""The model: the encoder with whatever was trained on it so far, as one module and one weights file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from ..decoders.kinds.segmentation import Segmentation
from ..decoders.registry import SEGMENTATION, DecoderConfig, build_decoder
from ..decoders.sight import Sight
from ..scope import ScopeConfig, build_scope
from ..sources import SourceConfig
from .scope import Scope
from .text import TextConfig, TextTower
from .vit import ViT, ViTConfig


@dataclass(frozen=True)
class RecipeConfig:
    """``config.yaml`` of a weights folder that ``train decoder`` wrote.

    Attributes
    ----------
    model : says that the folder holds a model, and not one stage's networks
    name, version : of the model, as its bundle says
    encoder : sizes of the encoder
    text : sizes of the text tower; none before alignment
    decoders : in the order in which they were trained
    sources : what each decoder was trained on, by its name; ``evaluate`` takes the test split
    scope : when the model answers; none before it was fitted
    scope_source : what it was fitted to
    threads, workers : CPU threads, and processes that make series, of training and evaluation
    licence, intended_use : of the model, as its bundle says; empty: not stated
    subject : what the scope was fitted to, in the plural ("heads"); empty: not stated
    """

    model: Literal["recipe"]
    name: str
    version: str
    encoder: ViTConfig
    text: TextConfig | None = None
    decoders: tuple[DecoderConfig, ...] = ()
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    scope: ScopeConfig | None = None
    scope_source: SourceConfig | None = None
    threads: int = 2
    workers: int = 2
    licence: str = ""
    intended_use: str = ""
    subject: str = ""

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        self.encoder.check()
        for place, decoder in enumerate(self.decoders):
            decoder.check(f"decoders[{place}]")
            if decoder.name not in self.sources:
                raise ValueError(f"sources.{decoder.name}: missing")
        names = [decoder.name for decoder in self.decoders]
        if len(set(names)) != len(names):
            raise ValueError(f"decoders holds {', '.join(names)}, expected each name once")
        for place, decoder in enumerate(self.decoders):
            below = [d.name for d in self.decoders[:place] if d.kind == SEGMENTATION]
            if decoder.upon and decoder.upon not in below:
                raise ValueError(
                    f"decoders[{place}].upon is {decoder.upon!r}, expected a segmentation before it: "
                    + (", ".join(below) or "there is none")
                )


class RecipeModel(nn.Module):
    """Encoder, and where they are there text tower, decoders and scope.

    Its state is ``encoder.*``, ``text.*``, ``logit_scale`` (the logarithm of what cosines of image and text are
    multiplied by), ``decoders.<name>.*`` and ``scope.*``.

    Attributes
    ----------
    sights : of the decoders that stand upon a segmentation, by name: what they find beside the tokens
    """

    scope: Scope | None

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViT(config.encoder)
        self.text = TextTower(config.text, config.encoder.embedding_size) if config.text else None
        if config.text:
            self.logit_scale = nn.Parameter(torch.zeros(()))
        self.decoders = nn.ModuleDict()
        self.sights: dict[str, Sight] = {}
        of_segmentation: dict[str, Sight] = {}
        for described in config.decoders:
            sight = of_segmentation.get(described.upon)
            if sight:
                self.sights[described.name] = sight
            decoder = build_decoder(described, config.encoder, sight.size if sight else 0)
            if isinstance(decoder, Segmentation):
                of_segmentation[described.name] = Sight(decoder)
            self.decoders[described.name] = decoder
        self.scope = build_scope(config.scope, config.encoder.embedding_size) if config.scope else None
