"""Symmetric InfoNCE over a batch of series and their texts (CLIP, arXiv 2103.00020, figure 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

START_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0  # CLIP's start and bound


def infonce(image: Tensor, text: Tensor, log_scale: Tensor, shared: Tensor | None = None) -> Tensor:
    """Return the loss of a whole batch, the mean of both directions.

    What a text says may be true of other series of the batch, which are then no negatives: a pair that ``shared``
    marks is left out of the sum over negatives, in both directions. It is not made a positive either: whether a series
    shows something that both reports happen to say in the same words is best learnt from its own report.

    Parameters
    ----------
    image, text : Tensor, shape (B, E), float32
        Unit vectors; row i of both is one pair.
    log_scale : Tensor, scalar
        Logarithm of the factor on cosines, 1 / temperature.
    shared : Tensor, shape (B, B), bool, optional
        [i, j] where text j is known to hold of series i as well. The diagonal does not matter.
    """
    logits = log_scale.exp() * image @ text.T
    if shared is not None:
        others = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(shared & others, -math.inf)
    own = logits.diagonal()
    to_text = torch.logsumexp(logits, dim=1) - own
    to_image = torch.logsumexp(logits, dim=0) - own
    return (to_text.mean() + to_image.mean()) / 2


def new_log_scale() -> torch.nn.Parameter:
    """Return the learned temperature at its start."""
    return torch.nn.Parameter(torch.tensor(math.log(START_SCALE)))


@torch.no_grad()
def clamp_log_scale(log_scale: Tensor) -> None:
    """Keep the factor within 1 to 100 after a step; in the forward pass a clamp would leave it without a gradient."""
    log_scale.clamp_(0.0, math.log(LARGEST_SCALE))
