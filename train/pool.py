"""The mean and variance that an encoder's pooled vectors are normalised by, from series seen as at inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens

from .model.vit import ViT
from .views import UNIT_WINDOW

BATCH = 16


def fit_pool(encoder: ViT, volumes: Iterable[NDArray[np.float16]]) -> None:
    """Set the pool of an encoder from series.

    Parameters
    ----------
    encoder : ViT
    volumes : iterable of ndarray, shape (D, H, W)
        0 and 1 are the ends of the intensity window; at least two.
    """
    encoder.set_pool(torch.cat(list(pooled_vectors(encoder, volumes))))


@torch.no_grad()
def pooled_vectors(encoder: ViT, volumes: Iterable[NDArray[np.float16]]) -> Iterator[Tensor]:
    """Yield what the encoder pools of each series, (1, 2C) float32, in order: foreground tokens in one bucket each."""
    was_training = encoder.training
    encoder.eval()
    waiting: list[NDArray[np.float16]] = []
    for volume in volumes:
        waiting.append(volume)
        if len(waiting) == BATCH:
            yield from _pooled(encoder, waiting)
            waiting = []
    yield from _pooled(encoder, waiting)
    encoder.train(was_training)


def _pooled(encoder: ViT, volumes: list[NDArray[np.float16]]) -> list[Tensor]:
    """Pool series of several buckets, one batch a bucket."""
    device = encoder.class_token.device
    grids = [Grid(v.astype(np.float32), UNIT_WINDOW, np.eye(4)) for v in volumes]
    tokens = [select_tokens(grid, encoder.config.preprocessing).indices for grid in grids]
    pooled: dict[int, Tensor] = {}
    for K in {len(t) for t in tokens}:
        members = [i for i, t in enumerate(tokens) if len(t) == K]
        volume = torch.from_numpy(np.stack([grids[i].volume for i in members]))[:, None]
        window = torch.from_numpy(UNIT_WINDOW).expand(len(members), -1)
        rows = torch.from_numpy(np.stack([tokens[i] for i in members]))
        vectors = encoder.pooled(
            *encoder.features(encoder.embed(volume.to(device), window.to(device), rows.to(device)))
        ).cpu()
        pooled |= {i: vectors[place : place + 1] for place, i in enumerate(members)}
    return [pooled[i] for i in range(len(volumes))]
