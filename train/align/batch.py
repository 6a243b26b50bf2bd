"""What one process computes in one step of the alignment: views of series, their reports, and a sentence of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.manifest import Preprocessing

from ..sources import Example
from ..text.tokenizer import encode
from ..views import ViewConfig, draw_movement, patches_at, ranked_patches, vary_intensities
from .texts import sentence_keys, whole_report

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Texts:
    """Tokenized texts.

    Attributes
    ----------
    input_ids, attention_mask : (B, T) int64; T is that of the longest
    """

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class AlignBatch:
    """A share of B series.

    Attributes
    ----------
    patches : (B, K, P) float32, normalised to -1..1 as the encoder does it
    tokens : (B, K) int64, flat patch indices
    reports, sentences : whole reports, and one sentence of each; apart, as a sentence is much shorter
    said : (B, S) int64, what each sentence of a report says, as a number; 0 for none
    chosen : (B,) int64, what the one sentence says
    """

    patches: Tensor
    tokens: Tensor
    reports: Texts
    sentences: Texts
    said: Tensor
    chosen: Tensor


def align_batch(
    examples: Sequence[Example],
    generators: Sequence[np.random.Generator],
    K: int,
    spec: Preprocessing,
    augment: ViewConfig,
    tokenizer: Tokenizer,
) -> AlignBatch:
    """Draw one view of each series, its report, and one of its sentences.

    Parameters
    ----------
    examples : sequence of Example
        Each with a report.
    generators : sequence of Generator
        One for each series: what is drawn for it depends on no other.
    K : int
        Tokens that are kept of each.
    """
    patches, tokens, reports, sentences, said, chosen = [], [], [], [], [], []
    for example, rng in zip(examples, generators, strict=True):
        seen, kept = draw_view(example.volume, K, spec, augment, rng)
        patches.append(seen)
        tokens.append(kept)
        keys, place = sentence_keys(example.report), int(rng.integers(len(example.report)))
        reports.append(whole_report(example.report, rng))
        sentences.append(example.report[place])
        said.append(keys)
        chosen.append(sentence_keys([example.report[place]])[0])
    return AlignBatch(
        patches=torch.from_numpy(np.stack(patches)),
        tokens=torch.from_numpy(np.stack(tokens)),
        reports=_texts(tokenizer, reports),
        sentences=_texts(tokenizer, sentences),
        said=torch.from_numpy(np.stack(said)),
        chosen=torch.from_numpy(np.array(chosen)),
    )


def draw_view(
    volume: NDArray[np.float16], K: int, spec: Preprocessing, augment: ViewConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Move a series, keep K of its foreground patches, vary its intensities.

    Where the foreground is smaller than K, the next best patches fill it up, as a bucket at inference.

    Returns
    -------
    patches : (K, P) float32, -1..1
    tokens : (K,) int64, ascending
    """
    moved = draw_movement(volume.shape, augment, rng)(volume)
    ranked, tissue = ranked_patches(moved, spec)
    tokens = np.sort(rng.choice(ranked[: max(K, tissue)], K, replace=False)).astype(np.int64)
    patches = patches_at(moved, tokens, spec).astype(np.float32)
    return vary_intensities(patches[None], augment, rng)[0], tokens


def _texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Texts:
    return Texts(*(torch.from_numpy(array) for array in encode(tokenizer, texts)))
