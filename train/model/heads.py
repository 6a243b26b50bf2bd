"""The first model's heads: what contrast an image has, whether a lesion is visible, whether it is a head at all.

Each takes the encoder's outputs and gives logits; ``export`` turns logits into calibrated probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SEQUENCES = ("T1w", "T2w", "PDw", "FLAIR", "T2*w")
LESION = ("absent", "present")


class SequenceHead(nn.Module):
    """Linear on the embedding: the embedding itself must tell contrasts apart.

    ``temperature`` divides the logits; it is fitted on validation data after training (arXiv 1706.04599).
    """

    temperature: Tensor

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_size, len(SEQUENCES))
        # A unit vector has components of about E**-0.5: the gain gives logits the usual scale from the first step.
        self.gain = nn.Parameter(torch.tensor(float(embedding_size) ** 0.5))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (B, E) to logits (B, 5)."""
        return self.linear(embedding * self.gain) / self.temperature


class LesionHead(nn.Module):
    """Evidence of every patch, pooled.

    Each token gives its own logit (trained against the lesion voxels of that patch); the volume's logit is an affine
    map of the strongest evidence, a softened maximum, so that one small lesion is enough and the number of tokens
    does not matter.
    """

    temperature: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, 1)
        # Few tokens hold a lesion: started at even odds, the pooled logit of all would say "present" of everything.
        nn.init.constant_(last.bias, -5.0)
        self.evidence = nn.Sequential(nn.Linear(width, width), nn.GELU(), last)
        self.affine = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, patch: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, K, C) to the volume's logit (B,) and the tokens' logits (B, K)."""
        evidence = self.evidence(patch).squeeze(-1)
        pooled = torch.logsumexp(evidence, dim=1)
        return (self.affine[0] * pooled + self.affine[1]) / self.temperature, evidence


class HeadnessHead(nn.Module):
    """Logit of "this is a head", linear on the embedding, trained with outlier exposure (arXiv 1812.04606)."""

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding_size, 1)
        self.gain = nn.Parameter(torch.tensor(float(embedding_size) ** 0.5))

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (B, E) to logits (B,)."""
        return self.linear(embedding * self.gain).squeeze(-1)
