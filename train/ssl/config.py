"""Configuration of self-supervised pretraining.

Defaults are those of 3DINO's published configuration (a ViT-L on 100,000 volumes) where it has one; the shares of crops
are its scales within and across slices, multiplied. Its stochastic depth and layer-wise decay of rates are left out.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from ..model.vit import ViTConfig
from ..run_config import RunConfig
from ..sources import SourceConfig
from ..views import ViewConfig

RATE_BATCH = 1024  # the batch that run.rate is for


@dataclass(frozen=True)
class CropConfig:
    """Crops of one series: two global ones, which the teacher sees, and ``local_crops`` others.

    A crop is a box that holds a share of the foreground patches, drawn from ``global_share`` or ``local_share``; of
    these as many are kept as the step's number of tokens says, drawn from ``global_tokens`` or ``local_tokens``.
    """

    local_crops: int = 8
    global_share: tuple[float, float] = (0.24, 1.0)
    local_share: tuple[float, float] = (0.03, 0.24)
    global_tokens: tuple[int, int] = (96, 192)
    local_tokens: tuple[int, int] = (24, 48)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three losses; ``koleo`` is that of each global crop's."""

    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1


@dataclass(frozen=True)
class DistillationConfig:
    """DINO, iBOT and KoLeo.

    Attributes
    ----------
    prototypes, head_hidden, head_bottleneck : sizes of both heads
    student_temperature : of its logits
    teacher_temperature : at the start and after ``temperature_warmup`` steps
    momentum : the teacher's, at the first and the last step
    mask_probability : share of the global crops in which tokens are masked
    mask_ratio : share of their tokens
    freeze_prototypes : steps at the start in which the prototypes stay where they are
    """

    prototypes: int = 65536
    head_hidden: int = 2048
    head_bottleneck: int = 256
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: int = 37500
    momentum: tuple[float, float] = (0.992, 1.0)
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.2, 0.75)
    freeze_prototypes: int = 1250
    losses: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True)
class MaskedAutoencoderConfig:
    """The masked autoencoder: which share of a crop's tokens is masked, and the decoder's sizes."""

    mask_ratio: float = 0.75
    decoder_width: int = 192
    decoder_depth: int = 2
    decoder_heads: int = 6


@dataclass(frozen=True)
class SSLConfig:
    """``decipher-rt train ssl``.

    Attributes
    ----------
    name, version : of the encoder
    encoder : ViTConfig, a preset by name, or a preset with changes
    source : SourceConfig
    run : RunConfig
        ``rate`` is for a batch of 1024 and is scaled by the square root of the batch's share of that.
    method : ``distillation`` (DINO, iBOT, KoLeo) or ``mae``
    pool_series : training series whose pooled vectors fix the encoder's pool after training
    workers : processes that make series
    """

    name: str
    version: str
    encoder: ViTConfig
    source: SourceConfig
    run: RunConfig
    method: Literal["distillation", "mae"] = "distillation"
    crops: CropConfig = field(default_factory=CropConfig)
    augment: ViewConfig = field(default_factory=ViewConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    mae: MaskedAutoencoderConfig = field(default_factory=MaskedAutoencoderConfig)
    pool_series: int = 512
    workers: int = 2

    @property
    def scaled_run(self) -> RunConfig:
        """The run with the learning rate of its batch."""
        return dataclasses.replace(self.run, rate=self.run.rate * math.sqrt(self.run.batch / RATE_BATCH))

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        self.encoder.check()
        self.source.check()
        self.run.check()
        self.augment.check()
        if self.run.strategy == "fsdp" and self.method == "distillation":
            raise ValueError(
                "run.strategy is fsdp, which shards student and teacher apart, expected ddp with method distillation"
            )
        crops, teaching, mae = self.crops, self.distillation, self.mae
        patches = self.encoder.preprocessing.patches
        for key, (low, high) in (
            ("crops.global_tokens", crops.global_tokens),
            ("crops.local_tokens", crops.local_tokens),
        ):
            if not 2 <= low <= high <= patches:
                raise ValueError(f"{key} is [{low}, {high}], expected ascending and from 2 to {patches} patches")
        for key, (start, end) in (
            ("crops.global_share", crops.global_share),
            ("crops.local_share", crops.local_share),
            ("distillation.mask_ratio", teaching.mask_ratio),
        ):
            if not 0 < start <= end <= 1:
                raise ValueError(f"{key} is [{start}, {end}], expected ascending, above 0 and up to 1")
        for key, share in (
            ("distillation.mask_probability", teaching.mask_probability),
            ("distillation.momentum[0]", teaching.momentum[0]),
            ("distillation.momentum[1]", teaching.momentum[1]),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{key} is {share}, expected 0 to 1")
        if not 0 < mae.mask_ratio < 1:
            raise ValueError(f"mae.mask_ratio is {mae.mask_ratio}, expected between 0 and 1")
        for key, value in (
            ("distillation.student_temperature", teaching.student_temperature),
            ("distillation.teacher_temperature[0]", teaching.teacher_temperature[0]),
            ("distillation.teacher_temperature[1]", teaching.teacher_temperature[1]),
        ):
            if value < 0.02:  # cosines over less leave the range of float32
                raise ValueError(f"{key} is {value}, expected 0.02 or more")
        for key, count, least in (
            ("crops.local_crops", crops.local_crops, 0),
            ("distillation.prototypes", teaching.prototypes, 2),
            ("distillation.head_hidden", teaching.head_hidden, 1),
            ("distillation.head_bottleneck", teaching.head_bottleneck, 1),
            ("mae.decoder_width", mae.decoder_width, 1),
            ("mae.decoder_depth", mae.decoder_depth, 1),
            ("mae.decoder_heads", mae.decoder_heads, 1),
            ("pool_series", self.pool_series, 2),
            ("workers", self.workers, 1),
            ("run.batch / run.accumulate", self.run.part, 2 if self.method == "distillation" else 1),
        ):
            if count < least:
                raise ValueError(f"{key} is {count}, expected {least} or more")
        if mae.decoder_width % 6 or mae.decoder_width % mae.decoder_heads:
            raise ValueError(
                f"mae.decoder_width is {mae.decoder_width}, expected a multiple of 6 and of mae.decoder_heads "
                f"({mae.decoder_heads})"
            )
