"""Self-supervised pretraining from its configuration to a weights folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..config import dump_config
from ..loop import TRAINING, run, warn_of_parts
from ..progress import Progress
from ..sources import open_source, pinned
from ..weights import trained_on
from .config import SSLConfig
from .stage import SSLStage


def pretrain(config: SSLConfig, folder: Path, cache_dir: Path, progress: Progress) -> None:
    """Train an encoder without labels, and leave a weights folder that holds it as ``encoder.*``.

    Parameters
    ----------
    config : SSLConfig
    folder : Path
        What is in it: see `decipher_rt.train.loop.run`. Killed at any moment, the same call goes on.
    cache_dir : Path
        Where series are kept on the encoder's grid.
    progress : Progress
    """
    torch.set_num_threads(config.run.threads)
    if config.method == "distillation":
        warn_of_parts(config.run, "Sinkhorn-Knopp and KoLeo", progress)
    examples = open_source(config.source, config.encoder.preprocessing, "train", cache_dir, config.workers, progress)
    torch.manual_seed(config.run.seed)
    stage = SSLStage(config, examples)
    if not (folder / TRAINING).exists():
        stage.start()
    identity = dump_config(replace(config, source=pinned(config.source, labels=False)))
    run(stage, config.scaled_run, folder, identity, progress, trained_on(config.source))
