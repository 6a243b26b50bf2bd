"""Configuration of the text encoder's pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..model.text import TextConfig
from ..run_config import RunConfig
from ..sources import SourceConfig


@dataclass(frozen=True)
class TextPretrainingConfig:
    """``decipher-rt train text``: masked language modelling on reports.

    Attributes
    ----------
    name, version : of the text encoder
    source : SourceConfig
        Only its reports are read. The simulator draws ``reports`` of them without computing any image.
    run : RunConfig
        ``batch`` counts texts.
    text : TextConfig
        Of an encoder that starts untrained, with a tokenizer trained on the reports; where ``text_from`` is given,
        that folder's.
    text_from : a local BERT folder in Hugging Face's layout to go on from, its tokenizer included; none: untrained
    reports : how many reports the simulator draws
    mask : share of the tokens that are hidden
    sentence_share : share of the texts that are one sentence; the others are whole reports
    """

    name: str
    version: str
    source: SourceConfig
    run: RunConfig
    text: TextConfig = field(default_factory=lambda: TextConfig.PRESETS["tiny"])
    text_from: str | None = None
    reports: int = 16384
    mask: float = 0.15
    sentence_share: float = 0.3

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        self.run.check()
        self.source.check()
        self.text.check()
        if not 0 < self.mask < 1:
            raise ValueError(f"mask is {self.mask}, expected between 0 and 1")
        if not 0 <= self.sentence_share <= 1:
            raise ValueError(f"sentence_share is {self.sentence_share}, expected 0 to 1")
        if self.reports < 1:
            raise ValueError(f"reports is {self.reports}, expected 1 or more")
