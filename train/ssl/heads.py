"""The projection heads of self-distillation: an MLP, then cosines with learned prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """Three layers to a unit vector, whose cosines with P unit prototypes are the logits (arXiv 2104.14294, A.2).

    Parameters
    ----------
    width : int
        Channels C of the token.
    hidden, bottleneck : int
        Channels of the two inner layers and of the unit vector.
    prototypes : int
        P.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                # DINO's 0.02 is this for its 2048 channels. In a smaller head what is 0.02 all but vanishes, and a unit
                # vector made of it has a gradient of hundreds.
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, tokens: Tensor, *, frozen: bool = False) -> Tensor:
        """Map (..., C) to cosines (..., P). ``frozen`` keeps the prototypes where they are: their gradient is zero."""
        prototypes: Tensor = self.prototypes
        if frozen:
            # Zero, not absent: a process group waits for the gradient of every parameter.
            prototypes = prototypes.detach() + 0.0 * prototypes
        points = self.mlp(tokens)
        # At temperature 0.04 the 8 bits of bfloat16 are a tenth of a logit: the cosines are taken in float32.
        with torch.autocast(points.device.type, enabled=False):
            return F.linear(F.normalize(points.float(), dim=-1), F.normalize(prototypes.float(), dim=-1))
