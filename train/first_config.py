"""Configuration of the first model's training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from .model.vit import ViTConfig


@dataclass(frozen=True)
class SampleConfig:
    """How many series are simulated, and of what.

    ``not_heads`` is the share of series that are something else: phantoms, noise, other anatomy, scrambled heads.
    """

    train: int = 4096
    validation: int = 768
    test: int = 1024
    not_heads: float = 0.25


@dataclass(frozen=True)
class ViewConfig:
    """What each view of a stored series is changed by; all are drawn anew for every view.

    ``shift_voxels`` moves the series within the grid, ``flip`` is the chance of exchanging left and right, ``window``
    moves both ends of the intensity window (share of its width, standard deviation), ``gamma`` bends intensities
    (standard deviation of the log exponent), ``noise`` is the largest standard deviation of added noise (share of the
    window).
    """

    shift_voxels: int = 8
    flip: float = 0.5
    window: float = 0.08
    gamma: float = 0.15
    noise: float = 0.04

    def check(self, key: str = "augment") -> None:
        """Raise ValueError by key where a value cannot be used."""
        for name in ("shift_voxels", "window", "gamma", "noise"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{key}.{name} is {value}, expected 0 or more")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"{key}.flip is {self.flip}, expected 0 to 1")


@dataclass(frozen=True)
class AugmentConfig(ViewConfig):
    """A view of which only some tokens are kept: ``keep`` is the range that their share is drawn from."""

    keep: tuple[float, float] = (0.1, 0.3)


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to zero; gradients are clipped to norm ``clip``.

    From the share ``whole_from`` of the steps on, all foreground tokens are kept, as at inference.
    """

    steps: int = 2600
    batch: int = 16
    rate: float = 5e-4
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    whole_from: float = 0.95


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses beside ``sequence``, which has weight 1."""

    lesion: float = 1.0
    evidence: float = 1.0
    tissue: float = 2.0
    headness: float = 0.5


@dataclass(frozen=True)
class FirstConfig:
    """``decipher-rt train first``.

    Attributes
    ----------
    name, version : of the model, as its bundle says
    seed : everything random follows from it
    encoder : ViTConfig, a preset by name, or a preset with changes
    bf16 : train in bfloat16 where the matrix products are (weights stay float32)
    threads : CPU threads of training; results are bit-exact for the same number only
    workers : processes that simulate, one thread each
    checkpoint_every : steps
    false_refusals : share of validation heads that the scope may refuse
    """

    name: str
    version: str
    seed: int
    encoder: ViTConfig
    samples: SampleConfig = field(default_factory=SampleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    bf16: bool = True
    threads: int = 2
    workers: int = 2
    checkpoint_every: int = 100
    false_refusals: float = 0.01

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        self.encoder.check()
        self.augment.check()
        for section in ("samples", "optimiser"):
            for item in fields(getattr(self, section)):
                value = getattr(getattr(self, section), item.name)
                if value < 0 or (
                    value == 0 and item.name in ("train", "validation", "test", "steps", "batch", "rate", "clip")
                ):
                    raise ValueError(f"{section}.{item.name} is {value}, expected more than 0")
        for key, value in (
            ("samples.not_heads", self.samples.not_heads),
            ("augment.keep[0]", self.augment.keep[0]),
            ("augment.keep[1]", self.augment.keep[1]),
            ("false_refusals", self.false_refusals),
            ("optimiser.whole_from", self.optimiser.whole_from),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{key} is {value}, expected 0 to 1")
        for key, count in (
            ("threads", self.threads),
            ("workers", self.workers),
            ("checkpoint_every", self.checkpoint_every),
        ):
            if count < 1:
                raise ValueError(f"{key} is {count}, expected 1 or more")
