"""Masking for masked language modelling (arXiv 1810.04805, section 3.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay as they are


def mask_tokens(
    ids: NDArray[np.int64], share: float, special: NDArray[np.int64], mask_id: int, vocabulary: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:  # fmt: skip
    """Hide tokens of one text.

    Parameters
    ----------
    ids : (T,) int64
    share : of the tokens that are not special; at least one token is chosen where there is any
    special : ids that are never chosen and never put in
    mask_id : of [MASK]
    vocabulary : number of ids

    Returns
    -------
    inputs : (T,) int64
        Of the chosen tokens 80 % are [MASK], 10 % another token of the vocabulary, 10 % what they were.
    chosen : (T,) bool
        Tokens that are to be told.
    """
    candidates = np.flatnonzero(~np.isin(ids, special))
    chosen = np.zeros(ids.shape, bool)
    inputs = ids.copy()
    if not len(candidates):
        return inputs, chosen
    places = rng.choice(candidates, max(1, round(share * len(candidates))), replace=False)
    chosen[places] = True
    fate = rng.random(len(places))
    words = np.setdiff1d(np.arange(vocabulary), special)
    inputs[places[fate < MASKED]] = mask_id
    swapped = places[(fate >= MASKED) & (fate < MASKED + RANDOM)]
    inputs[swapped] = rng.choice(words, len(swapped))
    return inputs, chosen
