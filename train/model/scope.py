"""Scope: how much a volume's embedding looks like those of the heads that the model was trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .heads import HeadnessHead


class Scope(nn.Module):
    """Two opinions, averaged.

    The Mahalanobis distance to the nearest sequence's training heads (arXiv 1807.03888: class means, one shared
    covariance) speaks against what is unlike everything that was trained on, heads or not. The outlier-exposure logit
    speaks against what training showed not to be a head. Each becomes a margin that is 0 where the fixed share of
    validation heads lies beyond and 1 at their median, so that both have one scale. The score is the mean margin less
    its own such edge: the threshold is 0.
    """

    means: Tensor
    whitening: Tensor
    distance_edge: Tensor
    logit_edge: Tensor
    edge: Tensor

    def __init__(self, embedding_size: int, classes: int) -> None:
        super().__init__()
        self.headness = HeadnessHead(embedding_size)
        self.register_buffer("means", torch.zeros(classes, embedding_size))
        self.register_buffer("whitening", torch.eye(embedding_size))
        # Where each margin is 0, and where it is 1.
        self.register_buffer("distance_edge", torch.tensor([1.0, 0.0]))
        self.register_buffer("logit_edge", torch.tensor([0.0, 1.0]))
        self.register_buffer("edge", torch.zeros(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (B, E) to the score (B,)."""
        near = _margin(self.distance(embedding), self.distance_edge)
        head = _margin(self.headness(embedding), self.logit_edge)
        return (near + head) / 2 - self.edge

    def distance(self, embedding: Tensor) -> Tensor:
        """Return the Mahalanobis distance to the nearest class mean, (B,)."""
        offset = (embedding.unsqueeze(1) - self.means) @ self.whitening
        return offset.square().sum(dim=-1).sqrt().amin(dim=1)


def _margin(x: Tensor, edge: Tensor) -> Tensor:
    return (x - edge[0]) / (edge[1] - edge[0])
