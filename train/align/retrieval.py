"""Recall@k between images and texts in a pool, beside what chance gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Recall@k in both directions and by chance, by k; ``pool`` is the number of pairs."""

    pool: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]
    chance: dict[int, float]

    def to_json(self) -> dict[str, object]:
        """Return plain JSON types, rounded."""
        rows = {"image_to_text": self.image_to_text, "text_to_image": self.text_to_image, "chance": self.chance}
        return {"pool": self.pool} | {
            f"{name}_recall@{k}": round(value, 4) for name, recalls in rows.items() for k, value in recalls.items()
        }


def retrieval(
    image: NDArray[np.floating], text: NDArray[np.floating], texts: Sequence[str], ks: Sequence[int] = KS
) -> Retrieval:
    """Measure how often the right one is among the first k.

    Parameters
    ----------
    image, text : ndarray, shape (N, E)
        Unit vectors; row i of both is one pair.
    texts : sequence of N str
        What the rows of ``text`` say. Where two series have the same text, either is right.
    ks : sequence of int
        Each at most N.

    Returns
    -------
    Retrieval
        Equal similarities count as ranked at random, so that a model that says the same of everything is no better
        than chance.
    """
    names, group = np.unique(np.asarray(texts), return_inverse=True)
    right = group[:, None] == group[None, :]
    del names
    similarity = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T
    return Retrieval(
        pool=len(texts),
        image_to_text={k: _recall(similarity, right, k) for k in ks},
        text_to_image={k: _recall(similarity.T, right, k) for k in ks},
        chance={k: float(np.mean([_hit(len(texts), int(row.sum()), k) for row in right])) for k in ks},
    )


def _recall(similarity: NDArray[np.float64], right: NDArray[np.bool_], k: int) -> float:
    """Mean over queries (rows) of the chance that one of the right ones is among the first k."""
    return float(np.mean([_chance_of_hit(row, good, k) for row, good in zip(similarity, right, strict=True)]))


def _chance_of_hit(row: NDArray[np.float64], good: NDArray[np.bool_], k: int) -> float:
    """Return the chance of a hit when equal similarities (to rounding) are in random order."""
    best = row[good].max()
    better = int((row > best + 1e-9).sum())
    level = np.abs(row - best) <= 1e-9
    return _hit(int(level.sum()), int((level & good).sum()), k - better) if better < k else 0.0


def _hit(among: int, good: int, draws: int) -> float:
    """Return the chance that ``draws`` of ``among``, drawn without putting back, hold at least one of ``good``."""
    draws = min(draws, among)
    return 1.0 - math.comb(among - good, draws) / math.comb(among, draws)
