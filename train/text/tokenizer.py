"""The WordPiece tokenizer: trained on reports, or read from a BERT folder; kept as one ``tokenizer.json``.

What turns text into tokens is the library ``tokenizers``, in training and at inference; lower case, accents and
punctuation are BERT's rules, cutting to the longest text and [CLS] ... [SEP] are in the file. Padding is the batch's.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decipher_rt.atomic import write_text
from decipher_rt.errors import DecipherError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)
NO_WORD = "\N{SNOWMAN}"
# Every text of printable ASCII can be spelt, so that a word that no report holds is pieces and not unknown.
ALPHABET = tuple(chr(code) for code in range(33, 127) if not chr(code).isupper())


class TokenizerError(DecipherError):
    """A tokenizer that is absent, damaged, or of another kind. The message names the file."""


def train_tokenizer(texts: Sequence[str], vocabulary: int, max_tokens: int) -> Tokenizer:
    """Train WordPiece on texts; the same texts give the same tokenizer.

    Parameters
    ----------
    texts : sequence of str
    vocabulary : int
        Most entries; a small corpus gives fewer.
    max_tokens : int
        Longer texts are cut to this, [CLS] and [SEP] included.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.trainers import WordPieceTrainer

    draft = Tokenizer(WordPiece({}, unk_token=UNKNOWN))
    _apply_bert_rules(draft, lower=True)
    found = {c for text in texts for c in draft.normalizer.normalize_str(text) if not c.isspace()}
    characters = sorted(found.union(ALPHABET))
    # The trainer numbers what it meets inside words in the order of a hash table, another one in every process, and
    # the numbers decide between pairs that are as frequent. What it is given beforehand it numbers in order.
    given = [*SPECIAL, *characters, *(f"##{c}" for c in characters if not _stands_alone(c))]
    if vocabulary < len(given):
        raise TokenizerError(f"text.vocabulary is {vocabulary}, expected {len(given)} or more, to spell any word")
    trainer = WordPieceTrainer(vocab_size=vocabulary, min_frequency=2, special_tokens=given, show_progress=False)
    draft.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(WordPiece(draft.get_vocab(), unk_token=UNKNOWN))
    _apply_bert_rules(tokenizer, lower=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    return finish_tokenizer(tokenizer, max_tokens)


def _stands_alone(character: str) -> bool:
    """Whether BERT's rules make a word of this character wherever it is; of what is left, symbols stay in words."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def load_tokenizer(folder: Path, max_tokens: int | None = None, vocabulary: int | None = None) -> Tokenizer:
    """Read ``tokenizer.json``, or BERT's ``vocab.txt`` where there is none.

    Parameters
    ----------
    folder : Path
    max_tokens : int, optional
        Cut texts to this; by default as the file says.
    vocabulary : int, optional
        Entries that the encoder has room for.

    Raises
    ------
    TokenizerError
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    path = folder / TOKENIZER
    words = folder / "vocab.txt"
    if not path.exists() and not words.exists():
        raise TokenizerError(f"{path}: no such file, nor vocab.txt; give a folder that 'train text' wrote, or a BERT's")
    try:
        if path.exists():
            tokenizer = Tokenizer.from_file(str(path))
        else:
            path = words
            tokenizer = Tokenizer(WordPiece.from_file(str(words), unk_token=UNKNOWN))
            _apply_bert_rules(tokenizer, lower=_lower_case(folder))
            tokenizer.add_special_tokens([name for name in SPECIAL if tokenizer.token_to_id(name) is not None])
        tokenizer.encode(NO_WORD)  # some are without what they say they call such a word
    except DecipherError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise TokenizerError(f"{path}: not a tokenizer ({' '.join(str(error).split())[:100]}); copy it again") from None
    missing = [name for name in SPECIAL if tokenizer.token_to_id(name) is None]
    if missing:
        raise TokenizerError(f"{path}: has no {', '.join(missing)}; expected a BERT tokenizer")
    highest = max(tokenizer.get_vocab().values())
    if vocabulary is not None and highest >= vocabulary:
        raise TokenizerError(f"{path}: numbers tokens up to {highest}, but its encoder has room for {vocabulary}")
    if max_tokens is None:
        return tokenizer
    return finish_tokenizer(tokenizer, max_tokens)


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write ``tokenizer.json`` into a folder."""
    write_text(folder / TOKENIZER, tokenizer.to_str(pretty=True))


def finish_tokenizer(tokenizer: Tokenizer, max_tokens: int) -> Tokenizer:
    """Have a tokenizer put [CLS] and [SEP] around a text, cut it, and not pad it."""
    from tokenizers.processors import BertProcessing

    tokenizer.post_processor = BertProcessing((END, token_id(tokenizer, END)), (START, token_id(tokenizer, START)))
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of one of ``SPECIAL``, which every tokenizer here has."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise TokenizerError(f"{TOKENIZER}: has no {token}; expected a BERT tokenizer")
    return found


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``input_ids`` and ``attention_mask``, both (B, T) int64; T is that of the longest text."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), token_id(tokenizer, PAD), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return ids, mask


def _apply_bert_rules(tokenizer: Tokenizer, *, lower: bool) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()


def _lower_case(folder: Path) -> bool:
    """Whether a BERT folder's texts are in lower case, as ``tokenizer_config.json`` says; so by default."""
    path = folder / "tokenizer_config.json"
    if not path.exists():
        return True
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return bool(settings.get("do_lower_case", True))
    except (OSError, ValueError, AttributeError):
        raise TokenizerError(f"{path}: not a JSON object; copy it again") from None
