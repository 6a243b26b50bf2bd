"""Configuration of a decoder's training."""

from __future__ import annotations

from dataclasses import dataclass

from ..run_config import RunConfig
from ..scope import ScopeConfig
from ..sources import SourceConfig
from .registry import DecoderConfig


@dataclass(frozen=True)
class DecoderRunConfig:
    """``decipher-rt train decoder``.

    Attributes
    ----------
    name, version : of the model that the decoder becomes part of
    decoder : what it answers, and how
    source : series whose truth it learns from
    run : RunConfig
    encoder : weights folder of the frozen encoder, of any stage; decoders that it has are kept
    workers : processes that simulate or resample series
    scope : given where the model's scope is to be fitted to this source too
    """

    name: str
    version: str
    decoder: DecoderConfig
    source: SourceConfig
    run: RunConfig
    encoder: str = ""
    workers: int = 2
    scope: ScopeConfig | None = None

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        if not self.encoder:
            raise ValueError("encoder is empty, expected the weights folder of the encoder (encoder=RUN)")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}, expected 1 or more")
        self.decoder.check()
        self.source.check()
        simulated = self.source.kind == "simulator"
        if self.decoder.kind == "segmentation" and self.decoder.target != ("tissue" if simulated else "mask"):
            raise ValueError(
                f"decoder.target is {self.decoder.target!r}, expected "
                + ("'tissue', the simulator's map" if simulated else "'mask', the manifest's column")
            )
        self.run.check()
        if self.scope is not None:
            self.scope.check()
