"""Percentiles that say of how many runs they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Below this many runs a percentile by rank is the maximum: 1 / (1 - q).
RUNS_FOR = {"p95_ms": 20, "p99_ms": 100}


def spread(times_ms: Sequence[float]) -> dict[str, Any]:
    """Describe times.

    Percentiles are by nearest rank (``inverted_cdf``): each is a time that was measured. Of fewer runs than
    ``RUNS_FOR`` names, p95 or p99 is the slowest run and no more than that; ``runs`` says how many there were.

    Parameters
    ----------
    times_ms : sequence of float
        At least one.

    Returns
    -------
    dict
        ``p50_ms, p95_ms, p99_ms, min_ms, max_ms, mean_ms, runs, runs_ms``.
    """
    times = np.asarray(times_ms, np.float64)
    p50, p95, p99 = np.percentile(times, (50, 95, 99), method="inverted_cdf").tolist()
    return {
        "p50_ms": round(p50, 4),
        "p95_ms": round(p95, 4),
        "p99_ms": round(p99, 4),
        "min_ms": round(float(times.min()), 4),
        "max_ms": round(float(times.max()), 4),
        "mean_ms": round(float(times.mean()), 4),
        "runs": len(times),
        "runs_ms": [round(t, 4) for t in times.tolist()],
    }


def ratio_of_medians(a: Sequence[float], b: Sequence[float], draws: int = 4000) -> tuple[float, float, float]:
    """Return median(a) / median(b) and its 95 % interval by bootstrap (Efron 1979; seeded, so that it repeats)."""
    rng = np.random.default_rng(0)
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    drawn = [_median(rng.choice(x, (draws, len(x))), axis=1) for x in (first, second)]
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5)).tolist()
    return float(_median(first) / _median(second)), low, high


def _median(times: Any, axis: int | None = None) -> Any:
    """Return the median by nearest rank, as ``spread`` states it."""
    return np.percentile(times, 50, axis=axis, method="inverted_cdf")
