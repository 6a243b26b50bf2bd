"""From the tokens of a series to one vector or one number: what classification and regression share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.vit import ViTConfig
from .contract import REACH


class LinearPool(nn.Module):
    """The linear probe: a linear map of the embedding beside the mean patch token (as DINOv2's, arXiv 2304.07193).

    Features are standardised by training statistics, so that one learning rate and one weight decay suit any encoder.
    """

    mean: Tensor
    scale: Tensor
    inputs = ("patch", "embedding")

    def __init__(self, encoder: ViTConfig, outputs: int) -> None:
        super().__init__()
        features = encoder.embedding_size + encoder.width
        self.linear = nn.Linear(features, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def start(self, pooled: Mapping[str, NDArray[Any]]) -> None:
        """Take mean and spread of each feature from the training split."""
        features = np.concatenate([pooled["embedding"], pooled["mean"]], axis=1).astype(np.float64)
        spread = features.std(axis=0)
        # A feature that is the same of all series says nothing: its noise must not be blown up.
        self.mean.copy_(torch.from_numpy(features.mean(axis=0)))
        self.scale.copy_(torch.from_numpy(1 / np.maximum(spread, 1e-3 * max(float(spread.max()), 1e-6))))

    def forward(self, patch: Tensor, embedding: Tensor) -> Tensor:
        """Map (B, K, C) and (B, E) to (B, outputs)."""
        features = torch.cat([embedding, patch.mean(dim=1)], dim=-1)
        return self.linear((features - self.mean) * self.scale)


class AttentionPool(nn.Module):
    """Attention pooling: learned queries look at all patch tokens, one softmax a head (arXiv 1810.00825, section 3.2).

    ``dropout`` is of the pooled vector, in training only.
    """

    inputs = ("patch",)

    def __init__(self, encoder: ViTConfig, outputs: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        C = encoder.width
        if heads < 1 or C % heads:
            raise ValueError(f"decoder.options.heads is {heads}, expected a divisor of the encoder's width ({C})")
        self.heads = heads
        self.norm = nn.LayerNorm(C, eps=1e-6)
        self.score = nn.Linear(C, heads)  # a head's query times its key matrix is one vector
        self.value = nn.Linear(C, C)
        self.out = nn.Sequential(nn.LayerNorm(C, eps=1e-6), nn.Dropout(dropout), nn.Linear(C, outputs))

    def start(self, pooled: Mapping[str, NDArray[Any]]) -> None:
        """Nothing: layer norms do it."""

    def forward(self, patch: Tensor) -> Tensor:
        """Map (B, K, C) to (B, outputs)."""
        x = self.norm(patch)
        weights = self.score(x).softmax(dim=1).transpose(1, 2)  # (B, heads, K)
        B, K, C = x.shape
        values = self.value(x).reshape(B, K, self.heads, C // self.heads).transpose(1, 2)  # (B, heads, K, C / heads)
        pooled = (weights.unsqueeze(2) @ values).flatten(1)
        return self.out(pooled)


class Odds(nn.Module):
    """Where the logit of a token starts that stands upon a segmentation: the strongest odds in its patch, weighted.

    Without it, what one cell in thousands says is lost in the others before anything is learned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(REACH))

    def forward(self, patch: Tensor) -> Tensor:
        """Map (B, K, C), the last of which `Sight` put there, to (B, K, 1)."""
        return self.weight * (2 * patch[..., -1:] - 1)


class TokenPool(nn.Module):
    """Each token gives its own number; what they amount to is their sum, or their largest.

    ``sum`` suits what adds up over the volume, such as millilitres: a dropped patch of air adds nothing. ``max``
    (softened: log-sum-exp) suits what one patch is enough for, such as a small lesion (multiple-instance learning).
    With ``odds`` each token's number starts as those of its patch.
    """

    inputs = ("patch",)

    typical_tokens: Tensor

    def __init__(self, encoder: ViTConfig, *, how: str, hidden: int, odds: bool = False) -> None:
        super().__init__()
        self.how = how
        self.last = nn.Linear(hidden, 1)
        self.each = nn.Sequential(nn.Linear(encoder.width, hidden), nn.GELU())
        self.odds = Odds() if odds else None
        if odds:
            nn.init.zeros_(self.last.weight)
        self.affine = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.register_buffer("typical_tokens", torch.ones(()))

    def start(self, pooled: Mapping[str, NDArray[Any]]) -> None:
        """Take the usual number of tokens: sums start at the scale of one, and the strongest at even odds."""
        tokens = float(np.mean(pooled["count"]))
        self.typical_tokens.fill_(tokens)
        if self.how == "max":  # the log-sum-exp of so many that are alike is larger than each by this
            nn.init.constant_(self.last.bias, -math.log(tokens))

    def forward(self, patch: Tensor) -> Tensor:
        """Map (B, K, C) to (B, 1)."""
        each = self.last(self.each(patch))
        if self.odds is not None:
            each = each + self.odds(patch)
        pooled = torch.logsumexp(each, dim=1) if self.how == "max" else each.sum(dim=1) / self.typical_tokens
        return self.affine[0] * pooled + self.affine[1]
