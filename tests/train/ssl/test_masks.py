"""Masks: how much, in how many crops, and in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from decipher_rt.train.ssl.masks import block_mask, plan_blocks, plan_random, random_mask

CUBE = np.indices((8, 8, 8)).reshape(3, -1).T.astype(np.float32) * 20.0


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_crops_are_masked_with_ratios_all_over_the_range(seed: int) -> None:
    plan = plan_blocks(2, 16, 0.5, (0.2, 0.75), np.random.default_rng(seed))
    ratios = np.sort(plan.ratios[plan.ratios > 0])
    assert len(ratios) == 16
    # One in each of sixteen equal steps from 0.2 to 0.75.
    edges = 0.2 + 0.55 * np.arange(17) / 16
    assert ((ratios >= edges[:-1]) & (ratios <= edges[1:])).all()


def test_over_many_steps_every_crop_is_masked_as_often_and_as_much() -> None:
    drawn = np.stack([plan_blocks(2, 8, 0.5, (0.2, 0.75), np.random.default_rng([1, s])).ratios for s in range(2000)])
    assert np.abs((drawn > 0).mean(axis=0) - 0.5).max() < 0.06  # 5 standard deviations of 2000 even odds
    assert drawn[drawn > 0].mean() == pytest.approx(0.475, abs=0.003)
    assert drawn[drawn > 0].min() < 0.203
    assert drawn.max() > 0.747


@pytest.mark.parametrize(("probability", "masked"), [(0.0, 0), (1.0, 12), (0.3, 4)])
def test_the_share_of_masked_crops_is_exact(probability: float, masked: int) -> None:
    plan = plan_blocks(2, 6, probability, (0.5, 0.5), np.random.default_rng(0))
    assert (plan.counts(10) > 0).sum() == masked


def test_counts_leave_something_to_see_and_something_to_say() -> None:
    plan = plan_blocks(2, 50, 1.0, (0.001, 0.999), np.random.default_rng(0))
    counts = plan.counts(12)
    assert counts.min() == 1
    assert counts.max() == 11
    assert (plan_random(2, 3, 0.75).counts(64) == 48).all()


def test_a_share_of_a_plan_is_a_part_of_it() -> None:
    plan = plan_blocks(2, 8, 0.5, (0.2, 0.75), np.random.default_rng(3))
    parts = [plan.share(0, 4), plan.share(4, 8)]
    assert np.array_equal(np.concatenate([p.ratios for p in parts], axis=1), plan.ratios)


@pytest.mark.parametrize("count", [1, 40, 256, 400, 511])
@pytest.mark.parametrize("seed", range(3))
def test_masks_hold_exactly_as_many(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert block_mask(CUBE, count, rng).sum() == count
    assert random_mask(512, count, rng).sum() == count


def test_blocks_are_blocks() -> None:
    """A masked token has far more masked neighbours (of 6) than if tokens were masked one by one."""

    def neighbours(mask: np.ndarray) -> float:
        grid = np.pad(mask.reshape(8, 8, 8).astype(int), 1)
        around = sum(np.roll(grid, step, axis) for axis in range(3) for step in (-1, 1))
        return float(around[grid == 1].mean())

    rngs = [np.random.default_rng(seed) for seed in range(20)]
    blocks = np.mean([neighbours(block_mask(CUBE, 128, rng)) for rng in rngs])
    single = np.mean([neighbours(random_mask(512, 128, rng)) for rng in rngs])
    assert single == pytest.approx(6 * 0.25 * 7 / 8, abs=0.15)  # a quarter of the neighbours that are in the cube
    assert blocks > 2 * single
