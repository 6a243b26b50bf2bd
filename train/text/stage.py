"""Masked language modelling as a stage of the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from ..distributed import share, weighted_mean
from ..loop import ParameterGroup
from ..model.text import MaskedLanguageHead, TextConfig, TextEncoder
from ..schedule import draw_indices
from .config import TextPretrainingConfig
from .masking import mask_tokens
from .tokenizer import MASK, SPECIAL, encode, token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT = 2  # what a generator is for, beside the seed


@dataclass(frozen=True)
class TextBatch:
    """B texts with hidden tokens.

    Attributes
    ----------
    input_ids, attention_mask, targets : (B, T) int64; ``targets`` are the ids before hiding
    hidden : (B, T) bool, what is to be told
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    hidden: Tensor


class MaskedLanguageModel(nn.Module):
    """Text encoder and its head. The state's names are those of a weights folder: ``text.encoder.*`` and ``mlm.*``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.text = nn.ModuleDict({"encoder": TextEncoder(config)})
        self.mlm = MaskedLanguageHead(config)

    @property
    def encoder(self) -> TextEncoder:
        """The text encoder."""
        encoder = self.text["encoder"]
        assert isinstance(encoder, TextEncoder)  # noqa: S101 - for mypy
        return encoder

    def forward(self, batch: TextBatch, step: int) -> dict[str, Tensor]:  # noqa: ARG002 - the loop's contract
        """Return ``loss``, the mean cross-entropy over hidden tokens, and ``accuracy`` on them."""
        states = self.encoder(batch.input_ids, batch.attention_mask)
        logits = self.mlm(states[batch.hidden], self.encoder.words.weight).float()
        targets = batch.targets[batch.hidden]
        each = F.cross_entropy(logits, targets, reduction="none")
        right = (logits.detach().argmax(dim=-1) == targets).float()
        ones = torch.ones_like(each)
        return {"loss": weighted_mean(each, ones), "accuracy": weighted_mean(right, ones)}


class TextStage:
    """What the loop asks of a stage.

    Parameters
    ----------
    config : TextPretrainingConfig
    reports : sequence of tuple of str
        Sentences of each; none is empty.
    tokenizer : Tokenizer
    """

    curve: tuple[str, ...] = ("loss", "accuracy")

    def __init__(self, config: TextPretrainingConfig, reports: Sequence[tuple[str, ...]], tokenizer: Tokenizer) -> None:
        self._config, self._reports, self._tokenizer = config, reports, tokenizer
        self._special = special_ids(tokenizer)
        self.network = MaskedLanguageModel(config.text)

    @property
    def model(self) -> nn.Module:
        """The module whose forward gives the losses."""
        return self.network

    def batch(self, step: int, rank: int, world_size: int) -> TextBatch:
        """Return one process's share of a step's batch; it follows from the seed, the step and its place alone."""
        run = self._config.run
        places = share(range(run.batch), rank, world_size)
        chosen = draw_indices(run.seed, len(self._reports), step, run.batch)
        generators = [np.random.default_rng([run.seed, TEXT, step, place]) for place in places]
        texts = [self._text(chosen[place], rng) for place, rng in zip(places, generators, strict=True)]
        return hide(self._tokenizer, texts, self._special, self._config.mask, generators)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Matrices decay; biases, gains, norms and positions do not."""
        named = list(self.network.named_parameters())
        matrices = [p for name, p in named if p.ndim >= 2 and not name.endswith("positions")]
        others = [p for name, p in named if p.ndim < 2 or name.endswith("positions")]
        return [
            {"params": matrices, "rate_scale": 1.0, "decays": True},
            {"params": others, "rate_scale": 1.0, "decays": False},
        ]

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the encoder and the head."""
        return state

    def _text(self, index: int, rng: np.random.Generator) -> str:
        sentences = self._reports[index]
        if rng.random() < self._config.sentence_share:
            return sentences[int(rng.integers(len(sentences)))]
        return " ".join(sentences)


def special_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return the ids that are no words."""
    return np.array([token_id(tokenizer, name) for name in SPECIAL], np.int64)


def hide(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    special: NDArray[np.int64],
    mask: float,
    generators: Sequence[np.random.Generator],
) -> TextBatch:
    """Turn texts into tokens and hide some of each."""
    ids, attention_mask = encode(tokenizer, texts)
    mask_id, vocabulary = token_id(tokenizer, MASK), tokenizer.get_vocab_size()
    rows = [mask_tokens(row, mask, special, mask_id, vocabulary, rng) for row, rng in zip(ids, generators, strict=True)]
    return TextBatch(
        input_ids=torch.from_numpy(np.stack([inputs for inputs, _ in rows])),
        attention_mask=torch.from_numpy(attention_mask),
        targets=torch.from_numpy(ids),
        hidden=torch.from_numpy(np.stack([hidden for _, hidden in rows])),
    )
