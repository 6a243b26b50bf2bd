"""Masking: the shares of the BERT paper, and what is never hidden."""

from __future__ import annotations

import numpy as np
import pytest

from decipher_rt.train.text.masking import mask_tokens

SPECIAL = np.arange(5)
MASK, VOCABULARY = 4, 1000


def test_shares_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, VOCABULARY, 40_000)
    inputs, chosen = mask_tokens(ids, 0.15, SPECIAL, MASK, VOCABULARY, rng)
    assert chosen.sum() == 6000
    assert (inputs[~chosen] == ids[~chosen]).all()
    masked = (inputs[chosen] == MASK).mean()
    kept = (inputs[chosen] == ids[chosen]).mean()
    # Four standard deviations of a share of 6000: 0.021 and 0.015. One in 995 of those swapped is swapped for itself.
    assert masked == pytest.approx(0.8, abs=0.021)
    assert kept == pytest.approx(0.1, abs=0.016)
    swapped = inputs[chosen & (inputs != ids) & (inputs != MASK)]
    assert swapped.min() >= 5
    assert len(np.unique(swapped)) > 300  # of about 600 draws from 995 words: any word, not a few
    places = np.flatnonzero(chosen)
    assert abs(places.mean() / len(ids) - 0.5) < 0.02  # all over the text


def test_special_tokens_are_never_hidden_and_one_word_always_is() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        inputs, chosen = mask_tokens(np.array([2, 77, 3, 0, 0]), 0.15, SPECIAL, MASK, VOCABULARY, rng)
        assert chosen.tolist() == [False, True, False, False, False]
        assert inputs[[0, 2, 3, 4]].tolist() == [2, 3, 0, 0]
    inputs, chosen = mask_tokens(np.array([2, 3]), 0.15, SPECIAL, MASK, VOCABULARY, rng)
    assert not chosen.any()
    assert inputs.tolist() == [2, 3]
