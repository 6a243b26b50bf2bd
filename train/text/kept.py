"""The tokenizer of a run: kept from its start, for weights are of its numbers and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..distributed import rank
from ..loop import begun
from ..model.text import TextConfig
from .tokenizer import TOKENIZER, load_tokenizer, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_of(folder: Path, start: str | None, config: TextConfig, texts: Callable[[], Sequence[str]]) -> Tokenizer:
    """Return a run's own tokenizer; where none was begun, that of the folder it starts from, or one trained on texts.

    Raises
    ------
    TokenizerError
    """
    has_its_own = begun(folder) and (folder / TOKENIZER).exists()
    if source := folder if has_its_own else start and Path(start):
        return load_tokenizer(source, config.max_tokens, config.vocabulary)
    return train_tokenizer(texts(), config.vocabulary, config.max_tokens)


def keep_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Put the tokenizer into the folder of a run that is about to begin; one that holds a run is left as it is."""
    if not rank() and not begun(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(folder, tokenizer)
