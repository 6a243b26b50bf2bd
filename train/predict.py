"""What a model says of stored series, seen as at inference: no augmentation, foreground tokens, one bucket each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens

from .model.first import FirstModel
from .samples import Series, SeriesStore
from .views import UNIT_WINDOW

BATCH = 16


@dataclass(frozen=True)
class Predictions:
    """Logits and embeddings of series in order, with their truth; ``sequence_truth`` is -1 where it is no head."""

    embedding: NDArray[np.float32]
    sequence: NDArray[np.float32]
    lesion: NDArray[np.float32]
    sequence_truth: NDArray[np.int64]
    lesion_truth: NDArray[np.bool_]
    kind: NDArray[np.int64]

    @property
    def head(self) -> NDArray[np.bool_]:
        """Which series are heads."""
        return self.kind == 0


@torch.no_grad()
def predict(model: FirstModel, samples: SeriesStore, indices: Sequence[int] | None = None) -> Predictions:
    """Run a model over series (all, or those of ``indices``)."""
    model.eval()
    chosen = range(len(samples)) if indices is None else indices
    rows: list[tuple[NDArray[np.float32], ...]] = []
    truth: list[tuple[int, bool, int]] = []
    for first in range(0, len(chosen), BATCH):
        series = [samples[i] for i in chosen[first : first + BATCH]]
        rows += _answers(model, series)
        truth += [(s.sequence, s.lesion, s.kind) for s in series]
    embedding, sequence, lesion = (np.stack(column) for column in zip(*rows, strict=True))
    columns = [np.array(column) for column in zip(*truth, strict=True)]
    return Predictions(embedding, sequence, lesion, columns[0], columns[1], columns[2])


def _answers(model: FirstModel, series: Sequence[Series]) -> list[tuple[NDArray[np.float32], ...]]:
    """Answer series of several buckets, one batch a bucket."""
    volumes = [s.volume.astype(np.float32) for s in series]
    tokens = [
        select_tokens(Grid(v, UNIT_WINDOW, np.eye(4)), model.encoder.config.preprocessing).indices for v in volumes
    ]
    answers: list[tuple[NDArray[np.float32], ...]] = [()] * len(series)
    for K in {len(t) for t in tokens}:
        members = [i for i, t in enumerate(tokens) if len(t) == K]
        volume = torch.from_numpy(np.stack([volumes[i] for i in members]))[:, None]
        window = torch.from_numpy(UNIT_WINDOW).expand(len(members), -1)
        out = model(model.encoder.embed(volume, window, torch.from_numpy(np.stack([tokens[i] for i in members]))))
        arrays = [out[name].float().numpy() for name in ("embedding", "sequence", "lesion")]
        for place, i in enumerate(members):
            answers[i] = tuple(a[place] for a in arrays)
    return answers
