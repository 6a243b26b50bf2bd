"""Embeddings of series and of texts, as at inference: foreground tokens in one bucket each, one view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..decoders.tokens import encode as encode_series
from ..model.text import TextTower
from ..model.vit import ViT
from ..sources import Examples
from ..text.tokenizer import encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 32


def embed_images(encoder: ViT, examples: Examples, members: Sequence[int]) -> NDArray[np.float32]:
    """Return the unit embeddings of the series that ``members`` names, (N, E)."""
    rows: list[NDArray[np.float32]] = []
    for first in range(0, len(members), BATCH):
        volumes = [examples[i].volume for i in members[first : first + BATCH]]
        rows += [one.embedding.numpy() for one in encode_series(encoder, volumes)]
    return np.stack(rows)


@torch.no_grad()
def embed_texts(tower: TextTower, tokenizer: Tokenizer, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the unit embeddings of texts, (N, E)."""
    tower.eval()
    device = tower.projection.weight.device
    rows = []
    for first in range(0, len(texts), BATCH):
        ids, mask = (torch.from_numpy(x).to(device) for x in encode(tokenizer, texts[first : first + BATCH]))
        rows.append(tower(ids, mask).float().cpu().numpy())
    return np.concatenate(rows)
