"""Which tokens the student does not see: blocks for iBOT (arXiv 2111.07832), single ones for a masked autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = (0.1, 0.5)  # a block is this share of what is to be masked: several blocks, as BEiT (arXiv 2106.08254) has them


@dataclass(frozen=True)
class MaskPlan:
    """How much of each global crop of a step is masked.

    Attributes
    ----------
    ratios : (V, B) float, 0 where nothing is masked
    blocks : whether whole blocks are masked, or single tokens
    """

    ratios: NDArray[np.float64]
    blocks: bool

    def counts(self, tokens: int) -> NDArray[np.int64]:
        """Return how many of ``tokens`` tokens are masked in each crop: at least one where any, never all."""
        counts = np.round(self.ratios * tokens).astype(np.int64)
        return np.where(self.ratios > 0, counts.clip(1, tokens - 1), 0)

    def share(self, first: int, last: int) -> MaskPlan:
        """Return the plan for the series ``first`` to ``last`` (not included)."""
        return MaskPlan(self.ratios[:, first:last], self.blocks)


def plan_blocks(
    views: int, series: int, probability: float, ratio: tuple[float, float], rng: np.random.Generator
) -> MaskPlan:
    """Plan iBOT's masks for a global batch.

    Exactly the share ``probability`` of the crops is masked (to the nearest whole number), and their ratios are spread
    evenly over ``ratio``: one drawn in each of as many equal steps, as DINOv2 does it. So no batch is all easy or all
    hard.
    """
    crops = views * series
    masked = round(probability * crops)
    edges = np.linspace(*ratio, masked + 1)
    ratios = np.zeros(crops)
    ratios[rng.permutation(crops)[:masked]] = rng.uniform(edges[:-1], edges[1:])
    return MaskPlan(ratios.reshape(views, series), blocks=True)


def plan_random(views: int, series: int, ratio: float) -> MaskPlan:
    """Plan a masked autoencoder's masks: the same share of every crop."""
    return MaskPlan(np.full((views, series), ratio), blocks=False)


def block_mask(centres: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask exactly ``count`` tokens in boxes: a neighbour that is seen would give most of a lone patch away.

    Parameters
    ----------
    centres : ndarray, shape (K, 3)
        Of the tokens, in mm.

    Returns
    -------
    ndarray, shape (K,), bool
    """
    masked = np.zeros(len(centres), bool)
    while left := count - int(masked.sum()):
        size = min(left, max(1, round(count * rng.uniform(*BLOCK))))
        free = np.flatnonzero(~masked)
        middle = centres[rng.choice(free)] + rng.uniform(-1e-3, 1e-3, 3)
        reach = np.abs(centres[free] - middle).max(axis=1)
        masked[free[np.argpartition(reach, size - 1)[:size]]] = True
    return masked


def random_mask(tokens: int, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask exactly ``count`` tokens, each as likely as any other."""
    masked = np.zeros(tokens, bool)
    masked[rng.choice(tokens, count, replace=False)] = True
    return masked
