"""Configuration of the image-report alignment."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..model.text import TextConfig
from ..model.vit import ViTConfig
from ..run_config import RunConfig
from ..sources import SourceConfig
from ..views import ViewConfig


@dataclass(frozen=True)
class AlignConfig:
    """``decipher-rt train align``.

    Attributes
    ----------
    name, version : of the model
    source : SourceConfig
    run : RunConfig
    encoder : ViTConfig
        Of an encoder that starts untrained; where ``encoder_from`` is given, that folder's.
    text : TextConfig
        Likewise, for ``text_from``.
    encoder_from : weights folder whose image encoder training starts from; none: untrained
    text_from : folder of ``train text``, or of any BERT in Hugging Face's layout; its tokenizer is kept. None:
        untrained, with a tokenizer trained on the reports of the source
    by_region : share of the series that meet in batches of one region (hard negatives); the others meet any
    sentences : share of the loss that is on single sentences; the rest is on whole reports
    tokens : range that the number of tokens of a step is drawn from, log-uniformly
    whole : share of the steps, drawn at random, that see about as many tokens of a series as inference does
    whole_tokens : range that their number of tokens is drawn from, within the encoder's buckets of usual series
    augment : ViewConfig
        ``flip`` must stay 0: a mirrored head makes "left" untrue.
    encoder_rate, text_rate : learning rate of what starts trained, as a share of ``run.rate``
    pool_series : training series and reports whose pooled vectors fix both projections' standardisation
    pool : pairs of the test split that recall is measured in, at most
    workers : processes that put series on the grid
    """

    name: str
    version: str
    source: SourceConfig
    run: RunConfig
    encoder: ViTConfig = field(default_factory=lambda: ViTConfig.PRESETS["tiny"])
    text: TextConfig = field(default_factory=lambda: TextConfig.PRESETS["tiny"])
    encoder_from: str | None = None
    text_from: str | None = None
    by_region: float = 0.5
    sentences: float = 0.5
    tokens: tuple[int, int] = (96, 256)
    whole: float = 0.0
    whole_tokens: tuple[int, int] = (192, 384)
    augment: ViewConfig = field(default_factory=lambda: ViewConfig(flip=0.0))
    encoder_rate: float = 0.3
    text_rate: float = 0.3
    pool_series: int = 256
    pool: int = 512
    workers: int = 2

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        self.run.check()
        self.source.check()
        self.encoder.check()
        self.text.check()
        self.augment.check()
        patches = self.encoder.preprocessing.patches
        ranges = {"tokens": self.tokens} | ({"whole_tokens": self.whole_tokens} if self.whole else {})
        for key, (low, high) in ranges.items():
            if not 1 <= low <= high <= patches:
                raise ValueError(
                    f"{key} is [{low}, {high}], expected two ascending numbers from 1 to {patches} patches"
                )
        if self.augment.flip:
            raise ValueError(f"augment.flip is {self.augment.flip}, expected 0: reports tell left from right")
        for key, share in (
            ("by_region", self.by_region),
            ("sentences", self.sentences),
            ("whole", self.whole),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{key} is {share}, expected 0 to 1")
        for key, share in (("encoder_rate", self.encoder_rate), ("text_rate", self.text_rate)):
            if not 0 < share <= 1:
                raise ValueError(f"{key} is {share}, expected above 0 and up to 1")
        for key, count, least in (
            ("run.batch / run.accumulate", self.run.part, 2),
            ("pool_series", self.pool_series, 2),
            ("pool", self.pool, 10),
            ("workers", self.workers, 1),
        ):
            if count < least:
                raise ValueError(f"{key} is {count}, expected {least} or more")
