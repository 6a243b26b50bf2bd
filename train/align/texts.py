"""What of a report a step reads, and where two series of a batch have the same said of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_SENTENCES = 64  # of a report that are compared; texts are cut to max_tokens long before


def whole_report(sentences: Sequence[str], rng: np.random.Generator) -> str:
    """Return a report as one text, half of the time in another order, so that the order does not matter much."""
    order = rng.permutation(len(sentences)) if rng.random() < 0.5 else range(len(sentences))
    return " ".join(sentences[i] for i in order)


def sentence_keys(sentences: Sequence[str]) -> NDArray[np.int64]:
    """Return one number for what each sentence says, (MOST_SENTENCES,) int64, 0 for none.

    The words without regard to case, spaces and the full stop, hashed: processes can exchange numbers.
    """
    keys = np.zeros(MOST_SENTENCES, np.int64)
    for place, sentence in enumerate(sentences[:MOST_SENTENCES]):
        words = " ".join(sentence.casefold().rstrip(".").split())
        keys[place] = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big", signed=True)
    return keys


def shared_reports(keys: Tensor) -> Tensor:
    """Say where a whole report holds of another series: all its sentences are in the other's report too.

    Sentences that say the same in other words stay negatives; nothing in a clinic's report would tell.

    Parameters
    ----------
    keys : Tensor, shape (B, S), int64
        ``sentence_keys`` of every report.

    Returns
    -------
    Tensor, shape (B, B), bool
        [i, j]: report j holds of series i.
    """
    keys = keys[:, : max(1, int((keys != 0).sum(dim=1).max()))]
    shared = torch.ones(len(keys), len(keys), dtype=torch.bool, device=keys.device)
    for theirs in keys.unbind(1):
        shared &= (keys[:, None, :] == theirs[None, :, None]).any(dim=-1) | (theirs == 0)
    return shared


def shared_sentences(keys: Tensor, chosen: Tensor) -> Tensor:
    """Say where the chosen sentence (B,) of series j is in the report (B, S) of series i as well, (B, B) bool."""
    return (keys[:, None, :] == chosen[None, :, None]).any(dim=-1)
