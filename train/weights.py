"""Weights folders: ``model.safetensors`` and ``config.yaml``; training ends with one and export starts from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import CONFIG, WEIGHTS, load_state, read_tensors, write_tensors, write_text
from .config import dump_config, load_config
from .first_config import FirstConfig
from .model.first import FirstModel


@dataclass(frozen=True)
class Weights:
    """A trained model, its configuration, and what was measured: ``metrics`` and ``provenance`` in ``metadata``."""

    model: FirstModel
    config: FirstConfig
    metadata: Mapping[str, Any]


def save_weights(folder: Path, weights: Weights) -> None:
    """Write a weights folder."""
    write_tensors(folder / WEIGHTS, weights.model.state_dict(), weights.metadata)
    write_text(folder / CONFIG, dump_config(weights.config))


def load_weights(folder: Path) -> Weights:
    """Read a weights folder.

    Raises
    ------
    CheckpointError, ConfigError
        Naming the file, and the key or tensor that does not fit.
    """
    tensors, metadata = read_tensors(folder / WEIGHTS)
    config = load_config(FirstConfig, folder / CONFIG)
    model = FirstModel(config.encoder)
    load_state(model, tensors, folder / WEIGHTS)
    return Weights(model.eval(), config, metadata)
