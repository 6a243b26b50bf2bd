"""Configuration of a decoder's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..run_config import RunConfig
from ..scope import ScopeConfig
from ..sources import SourceConfig
from .registry import SEGMENTATION, DecoderConfig, kind_of


@dataclass(frozen=True)
class DecoderRunConfig:
    """``decipher-rt train decoder``.

    Attributes
    ----------
    name, version : of the model that the decoder becomes part of
    decoder : what it answers, and how
    source : series whose truth it learns from
    run : RunConfig
    encoder : weights folder of the frozen encoder, of any stage; decoders that it has are kept where the output is new
    workers : processes that simulate or resample series
    scope : given where the model's scope is to be fitted to this source too
    licence, intended_use : of the model, as its bundle says; empty: not stated
    subject : with ``scope``: what it was fitted to, in the plural ("heads"); empty: not stated
    without : decoders of the encoder's folder, or of the output, that the model is not to have; nor what is upon them
    """

    # What the model is called and holds beside this decoder: to change it trains nothing again.
    UNTRAINED: ClassVar[tuple[str, ...]] = ("licence", "intended_use", "subject", "without")

    name: str
    version: str
    decoder: DecoderConfig
    source: SourceConfig
    run: RunConfig
    encoder: str = ""
    workers: int = 2
    scope: ScopeConfig | None = None
    licence: str = ""
    intended_use: str = ""
    subject: str = ""
    without: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        if not self.encoder:
            raise ValueError("encoder is empty, expected the weights folder of the encoder (encoder=RUN)")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}, expected 1 or more")
        self.decoder.check()
        self.source.check()
        if self.source.kind == "bids" and kind_of(self.decoder.kind).answer in (SEGMENTATION, "localisation"):
            raise ValueError(
                "source.kind is 'bids', which has neither masks nor boxes; list the images in a manifest with a column "
                "mask or boxes"
            )
        if self.decoder.kind == SEGMENTATION and self.decoder.target != self.source.label_map:
            simulated = self.source.kind == "simulator"
            raise ValueError(
                f"decoder.target is {self.decoder.target!r}, expected {self.source.label_map!r}, "
                + ("the simulator's map" if simulated else "the manifest's column")
            )
        self.run.check()
        if self.scope is not None:
            self.scope.check()
