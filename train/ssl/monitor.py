"""What a collapse of self-distillation shows in, while it trains."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..distributed import all_sum, gather, world_size


@torch.no_grad()
def watch(features: Tensor, logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return figures of the teacher's class tokens, of the whole batch and the same on every process.

    Two things can go wrong (arXiv 2104.14294, section 5.3): every sample gives the same prototype, or every sample
    gives all of them alike. Sinkhorn hides the first, so these are of the teacher's answers before it.

    Parameters
    ----------
    features : Tensor, shape (n, C)
        Of this process, which has as many as every other.
    logits : Tensor, shape (n, P)
    temperature : float
        The teacher's.

    Returns
    -------
    dict
        ``teacher_entropy``: mean entropy of a sample's prototypes, 0 to log P; at log P the teacher says nothing.
        ``marginal_entropy``: entropy of all samples' prototypes together, 0 to log P; at 0, or no more than
        ``teacher_entropy``, all samples are the same to it.
        ``embedding_std``: standard deviation of unit-length features over samples, times sqrt(C): 1 where they point
        in all directions, 0 where in one.
        ``embedding_rank``: effective rank of the centred features, exp of the entropy of their singular values
        (RankMe, arXiv 2210.02885), at most the number of all samples less one.
    """
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    own = torch.cat([probabilities.mean(dim=0), entropy(probabilities).mean().unsqueeze(0)])
    mean = all_sum(own) / world_size()  # answers of a base model, 65536 numbers each, stay where they are
    unit = F.normalize(gather(features.float()), dim=-1)
    centred = unit - unit.mean(dim=0)
    # What has diverged is the loop's to say, in words; LAPACK would refuse it in its own.
    singular = torch.linalg.svdvals(centred) if centred.isfinite().all() else centred.new_full((1,), torch.nan)
    return {
        "teacher_entropy": mean[-1],
        "marginal_entropy": entropy(mean[:-1]),
        "embedding_std": (centred.square().sum(dim=1).mean()).sqrt(),
        "embedding_rank": entropy(singular / singular.sum().clamp_min(1e-12)).exp(),
    }


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy over the last axis, in nats."""
    return -torch.xlogy(probabilities, probabilities).sum(dim=-1)
