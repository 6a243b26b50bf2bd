"""Which series the simulator makes: seeds by split and number, and what each is of."""

from __future__ import annotations

from decipher_rt.train.samples import SPLITS, draw_kind, sample_seed


def test_seeds_of_splits_differ_and_kinds_follow_the_share() -> None:
    seeds = {sample_seed(1, split, i) for split in SPLITS for i in range(500)}
    assert len(seeds) == 1500
    kinds = [draw_kind(seed, 0.3) for seed in sorted(seeds)]
    assert 0.26 < sum(kind != "head" for kind in kinds) / 1500 < 0.34  # 3.4 standard deviations
    assert {"head", "phantom", "noise", "other_anatomy", "scrambled"} == set(kinds)
