"""What changes with the step: learning rate, weight decay, and which examples a step sees."""

from __future__ import annotations

import math

import numpy as np

from .run_config import RunConfig

ORDER = 1  # what the generator of an epoch's order is for


def learning_rate(settings: RunConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine from ``rate`` to ``final_rate`` (arXiv 1608.03983)."""
    warm = min(1.0, (step + 1) / max(settings.warmup, 1))
    done = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return warm * cosine(settings.rate, settings.final_rate, done)


def weight_decay(settings: RunConfig, step: int) -> float:
    """Return the weight decay of a step: a cosine from first to last over the whole run (arXiv 2104.14294)."""
    return cosine(*settings.weight_decay, step / max(1, settings.steps - 1))


def cosine(start: float, end: float, done: float) -> float:
    """Return the value at the share ``done`` (0 to 1, clipped) of half a cosine from ``start`` to ``end``."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def draw_indices(seed: int, count: int, step: int, batch: int) -> list[int]:
    """Return which of ``count`` examples a step sees, in order: every epoch is a new permutation of all of them."""
    places = range(step * batch, (step + 1) * batch)
    orders = {e: np.random.default_rng([seed, ORDER, e]).permutation(count) for e in {p // count for p in places}}
    return [int(orders[p // count][p % count]) for p in places]
