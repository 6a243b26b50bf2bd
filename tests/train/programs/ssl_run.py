"""A small self-supervised run on made-up balls, as a program: ``ssl_run.py FOLDER [key=value ...]``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.loop import TRAINING, run
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import Example, ListedExamples
from decipher_rt.train.ssl.config import SSLConfig
from decipher_rt.train.ssl.stage import SSLStage

CONTRASTS = 5


def ball(index: int) -> Example:
    """A ball of one of five textures, of random size, brightness and place, with a hole."""
    rng = np.random.default_rng([5, index])
    axes = np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij")
    moved = [a - c for a, c in zip(axes, rng.uniform(-1.5, 1.5, 3), strict=True)]
    radius = np.sqrt(sum(a**2 for a in moved))
    contrast = index % CONTRASTS
    texture = np.sin(radius * (0.5 + 0.3 * contrast) + rng.uniform(0, 6))
    hole = np.sqrt(sum((a - c) ** 2 for a, c in zip(axes, rng.uniform(-5, 5, 3), strict=True))) < rng.uniform(2, 4)
    inside = (radius < rng.uniform(8.5, 10.5)) & ~hole
    volume = np.where(inside, rng.uniform(0.3, 0.9) + 0.1 * texture + rng.normal(0, 0.02, radius.shape), 0.0)
    return Example(
        volume=volume.astype(np.float16),
        affine_lps_mm=np.eye(4),
        labels={"sequence": str(contrast)},
        patient=f"ball-{index}",
    )


def main(folder: Path, overrides: list[str]) -> None:
    config = load_config(SSLConfig, Path(__file__).with_suffix(".yaml"), overrides)
    torch.manual_seed(config.run.seed)
    stage = SSLStage(config, ListedExamples([ball(i) for i in range(120)]))
    if not (folder / TRAINING).exists():
        stage.start()
    run(stage, config.scaled_run, folder, dump_config(config), Progress())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
