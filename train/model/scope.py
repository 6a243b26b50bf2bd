"""Scope: how much a volume's embedding looks like those of the heads that the model was trained on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

ScopeMethod = Literal["mahalanobis", "nearest"]


class Scope(nn.Module):
    """One opinion, or two, averaged.

    The distance to what was trained on speaks against what is unlike all of it, heads or not: the Mahalanobis distance
    to the nearest class mean (arXiv 1807.03888: class means, one shared covariance), or that to the k-th nearest of
    some training heads (arXiv 2204.06507). The outlier-exposure logit, where there was anything else than heads to
    learn it from, speaks against what training showed not to be a head. Each becomes a margin that is 0 where the
    fixed share of validation heads lies beyond and 1 at their median, so that both have one scale. The score is the
    mean margin less its own such edge: the threshold is 0.

    Parameters
    ----------
    embedding_size : E
    groups : class means of the Mahalanobis distance, or training heads that the nearest are sought among
    method : the distance
    neighbours : k of "nearest"
    outliers : whether there is an outlier-exposure logit
    """

    means: Tensor
    whitening: Tensor | None
    distance_edge: Tensor
    logit_edge: Tensor
    edge: Tensor

    def __init__(
        self,
        embedding_size: int,
        groups: int,
        *,
        method: ScopeMethod,
        neighbours: int,
        outliers: bool,
    ) -> None:
        super().__init__()
        self.neighbours = neighbours if method == "nearest" else 1
        self.headness: Any = HeadnessHead(embedding_size) if outliers else None
        self.register_buffer("means", torch.zeros(groups, embedding_size))
        self.register_buffer("whitening", torch.eye(embedding_size) if method == "mahalanobis" else None)
        # Where each margin is 0, and where it is 1.
        self.register_buffer("distance_edge", torch.tensor([1.0, 0.0]))
        if outliers:
            self.register_buffer("logit_edge", torch.tensor([0.0, 1.0]))
        self.register_buffer("edge", torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (B, E) to the score (B,)."""
        near = _margin(self.distance(embedding), self.distance_edge)
        if self.headness is None:
            return near - self.edge
        head = _margin(self.headness(embedding), self.logit_edge)
        return (near + head) / 2 - self.edge

    def distance(self, embedding: Tensor) -> Tensor:
        """Return the distance to the nearest mean, or to the k-th nearest, (B,)."""
        offset = embedding.unsqueeze(1) - self.means
        if self.whitening is not None:
            offset = offset @ self.whitening
        squares = offset.square().sum(dim=-1)
        if self.neighbours == 1:
            return squares.sqrt().amin(dim=1)
        return squares.topk(self.neighbours, dim=1, largest=False).values[:, -1].sqrt()


class HeadnessHead(nn.Module):
    """Logit of "this is a head", linear on the embedding, fitted with outlier exposure (arXiv 1812.04606).

    A unit vector has components of about E**-0.5: ``gain`` brings them to the scale of one.
    """

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_size, 1)
        self.gain = nn.Parameter(torch.tensor(float(embedding_size) ** 0.5))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (B, E) to logits (B,)."""
        return self.linear(embedding * self.gain).squeeze(-1)


def _margin(x: Tensor, edge: Tensor) -> Tensor:
    return (x - edge[0]) / (edge[1] - edge[0])
