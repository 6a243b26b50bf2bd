"""Small runs of decoders: what is trained in seconds, upon an encoder that nobody trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from decipher_rt.train.decoders.config import DecoderRunConfig
from decipher_rt.train.decoders.registry import DecoderConfig
from decipher_rt.train.decoders.train import train_decoder
from decipher_rt.train.model.text import TextConfig
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.run_config import RunConfig
from decipher_rt.train.sources import SourceConfig
from decipher_rt.train.weights import Weights

TEXT = TextConfig(width=16, depth=1, heads=2, hidden=32, vocabulary=128, max_tokens=12)
BRIGHTNESS = DecoderConfig("brightness", "classification", "sequence", options={"labels": ["dark", "light"]})
BALL = DecoderConfig("ball", "regression", "ball_volume_ml", options={"unit": "ml"})
TISSUE = DecoderConfig("tissue", "segmentation", "tissue", options={"channels": [8, 8], "skips": True})
SEEN = DecoderConfig(
    "lesion", "classification", "lesion", upon="tissue", options={"labels": ["absent", "present"], "pool": "max"}
)
RUN = RunConfig(steps=12, batch=16, rate=1e-2, warmup=2, precision="fp32", threads=1, checkpoint_every=4)
SOURCE = SourceConfig(seed=1, train=96, validation=48, test=48)


@dataclasses.dataclass(frozen=True)
class AlignedConfig:
    """What the folder of an alignment says of its networks."""

    name: str
    encoder: ViTConfig
    text: TextConfig
    source: SourceConfig


def run_config(encoder: Path, decoder: DecoderConfig = BRIGHTNESS, **changes: object) -> DecoderRunConfig:
    config = DecoderRunConfig("test", "1", decoder, SOURCE, RUN, str(encoder))
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def trained(config: DecoderRunConfig, folder: Path, cache: Path) -> Weights:
    weights = train_decoder(config, folder, cache, Progress())
    assert weights is not None
    return weights
