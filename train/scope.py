"""After training, on validation series: temperatures that calibrate the heads; statistics and thresholds of scope."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor

from .model.first import FirstModel
from .model.heads import SEQUENCES
from .predict import predict
from .samples import SeriesStore

FIT_SERIES = 1024  # training series whose embeddings give the scope's means and covariance


def fit_temperatures(model: FirstModel, validation: SeriesStore) -> None:
    """Set the heads' temperatures to the best likelihood on validation heads (arXiv 1706.04599)."""
    for head in (model.sequence, model.lesion):
        head.temperature.fill_(1.0)
    seen = predict(model, validation)
    heads = seen.head
    sequence, lesion = torch.from_numpy(seen.sequence[heads]), torch.from_numpy(seen.lesion[heads])
    sequence_truth = torch.from_numpy(seen.sequence_truth[heads])
    lesion_truth = torch.from_numpy(seen.lesion_truth[heads]).float()
    model.sequence.temperature.fill_(_best(lambda t: F.cross_entropy(sequence / t, sequence_truth)))
    model.lesion.temperature.fill_(_best(lambda t: F.binary_cross_entropy_with_logits(lesion / t, lesion_truth)))


def _best(loss) -> float:  # type: ignore[no-untyped-def]
    grid = np.exp(np.linspace(np.log(0.2), np.log(5.0), 200))
    return float(grid[int(np.argmin([float(loss(t)) for t in grid]))])


def fit_scope(model: FirstModel, train: SeriesStore, validation: SeriesStore, false_refusals: float) -> None:
    """Set means and covariance from training heads, and both margins from validation heads.

    An edge (margin 0, score 0) is where ``false_refusals`` of the validation heads lie beyond; the median head has
    margin 1.
    """
    seen = predict(model, train, range(min(FIT_SERIES, len(train))))
    embedding, truth = seen.embedding[seen.head].astype(np.float64), seen.sequence_truth[seen.head]
    means = np.stack([embedding[truth == c].mean(axis=0) for c in range(len(SEQUENCES))])
    scope = model.scope
    scope.means.copy_(torch.from_numpy(means))
    scope.whitening.copy_(torch.from_numpy(_whitening(embedding - means[truth])))
    heads = predict(model, validation)
    inside = torch.from_numpy(heads.embedding[heads.head])
    with torch.no_grad():
        scope.distance_edge.copy_(_edge(scope.distance(inside), 1 - false_refusals))
        scope.logit_edge.copy_(_edge(scope.headness(inside), false_refusals))
        scope.edge.zero_()
        scope.edge.copy_(scope(inside).quantile(false_refusals))


def _whitening(offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return W with W W^T the inverse of the shrunk covariance."""
    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(offsets).covariance_)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-6)))


def _edge(values: Tensor, quantile: float) -> Tensor:
    return torch.stack([values.quantile(quantile), values.median()])
