"""Which series the simulator makes: their seeds by split and number, and what each is of."""

from __future__ import annotations

from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Shares among the series that are no heads: what is easy to mistake for a head comes more often.
NOT_HEADS = {"phantom": 0.4, "other_anatomy": 0.3, "scrambled": 0.2, "noise": 0.1}
STORED = (-0.5, 2.0)  # range kept on disk, in widths of the intensity window


def sample_seed(seed: int, split: Split, index: int) -> int:
    """Return the simulator's seed of one series; splits never share one."""
    return int(np.random.SeedSequence([seed, SPLITS.index(split), index]).generate_state(1, np.uint64)[0] >> 1)


def draw_kind(seed: int, not_heads: float) -> str:
    """Return what the series with this seed is of."""
    rng = np.random.default_rng([seed, 1])
    if rng.random() >= not_heads:
        return "head"
    return str(rng.choice(list(NOT_HEADS), p=list(NOT_HEADS.values())))
