"""Percentiles and ratios against numpy, and what few runs may say."""

import numpy as np
import pytest

from decipher_rt.profile.spread import ratio_of_medians, spread


def test_percentiles_are_times_that_were_measured():
    times = np.random.default_rng(0).exponential(10, 137).tolist()
    found = spread(times)
    for key, q in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
        at_most = sorted(times)[int(np.ceil(q * len(times))) - 1]  # nearest rank
        assert found[key] == pytest.approx(at_most, abs=1e-4)
    assert found["runs"] == 137
    assert found["runs_ms"] == pytest.approx(times, abs=1e-4)


def test_of_few_runs_the_high_percentiles_are_the_slowest():
    found = spread([3.0, 1.0, 2.0])
    assert found["p95_ms"] == found["p99_ms"] == found["max_ms"] == 3.0
    assert found["p50_ms"] == 2.0


def test_the_interval_of_a_ratio_holds_the_true_one():
    """Lognormal times of medians 20 and 10: over 50 experiments nearly all 95 % intervals must hold the ratio 2."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(50):
        a, b = 20 * rng.lognormal(0, 0.1, 40), 10 * rng.lognormal(0, 0.1, 40)
        ratio, low, high = ratio_of_medians(a, b, draws=400)
        assert low <= ratio <= high
        inside += low <= 2 <= high
    assert inside >= 43


def test_a_ratio_repeats():
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 3.5, 9.0]
    assert ratio_of_medians(a, b) == ratio_of_medians(a, b)
