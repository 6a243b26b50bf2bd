"""Batches by region: of one region each as far as asked for, every series at most once an epoch, from the step alone."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from decipher_rt.train.align.regions import batch_indices, epoch_batches

REGIONS = ["frontal"] * 37 + ["temporal"] * 22 + ["cerebellum"] * 5 + [None] * 12
ORDER = np.random.default_rng(0).permutation(len(REGIONS))
SHUFFLED = [REGIONS[i] for i in ORDER]


@pytest.mark.parametrize("by_region", [0.0, 0.5, 1.0])
def test_an_epoch_holds_whole_batches_and_no_series_twice(by_region: float) -> None:
    batches = epoch_batches(SHUFFLED, 8, np.random.default_rng(1), by_region)
    assert len(batches) == 76 // 8
    assert {len(batch) for batch in batches} == {8}
    flat = [i for batch in batches for i in batch]
    assert len(flat) == len(set(flat)) == 72


def test_batches_of_one_region() -> None:
    def pure(by_region: float) -> float:
        batches = [b for seed in range(30) for b in epoch_batches(SHUFFLED, 8, np.random.default_rng(seed), by_region)]
        return float(np.mean([len({SHUFFLED[i] for i in batch}) == 1 for batch in batches]))

    # 4 of frontal, 2 of temporal, of 9; the 5 of the cerebellum never fill one, and those without a region are none.
    assert pure(1.0) == pytest.approx(6 / 9, abs=0.02)
    assert pure(0.0) < 0.02
    assert 0.15 < pure(0.5) < 0.45


def test_small_regions_are_seen_too() -> None:
    seen = collections.Counter(i for step in range(90) for i in batch_indices(SHUFFLED, 8, 3, step, 1.0))
    assert set(seen) == set(range(76))
    assert max(seen.values()) <= 10  # ten epochs


def test_a_step_decides_its_batch() -> None:
    for step in (0, 8, 9, 1000):
        assert batch_indices(SHUFFLED, 8, 3, step, 0.5) == batch_indices(SHUFFLED, 8, 3, step, 0.5)
    assert batch_indices(SHUFFLED, 8, 3, 0, 0.5) != batch_indices(SHUFFLED, 8, 3, 9, 0.5)
    assert batch_indices(SHUFFLED, 8, 3, 0, 0.5) != batch_indices(SHUFFLED, 8, 4, 0, 0.5)
    with pytest.raises(ValueError, match=r"run.batch is 100, expected at most the number of series with a report, 76"):
        batch_indices(SHUFFLED, 100, 3, 0, 0.5)
