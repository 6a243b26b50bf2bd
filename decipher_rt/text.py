"""Text in the space of the series: the bundle's tokenizer and text tower, and series beside prompts. No PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.bundle import Bundle
from decipher_rt.engines import load_engine
from decipher_rt.errors import BundleError, DecipherError
from decipher_rt.manifest import Text
from decipher_rt.result import UNIT_TOLERANCE, PromptAnswer, ScopeAnswer

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embedding"
SHOWN = 40  # characters of a prompt in a message
MOST_CHARACTERS = 1 << 20  # of one text: far above any report, and tokenizers need memory for each


class TextTower:
    """A bundle's tokenizer and text tower, ready to run.

    Parameters
    ----------
    bundle : Bundle
    threads : int
        CPU threads of the tower.

    Raises
    ------
    BundleError
        If the bundle has no text tower, or its tokenizer or its graph is not one.
    EngineError
        If onnxruntime refuses the graph.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        entry = bundle.manifest.text
        if entry is None:
            raise BundleError(
                f"bundle {bundle.manifest.name} has no text tower, so that prompts and queries in words cannot be "
                "answered; use a bundle with one"
            )
        self._entry: Text = entry
        self._size = bundle.manifest.encoder.embedding_size
        content = bundle.file(entry.tokenizer).read_bytes()
        self._tokenizer = _load_tokenizer(content, entry.tokenizer)
        self._unknown = _unknown_id(self._tokenizer, content)
        self._graph = load_engine("onnxruntime", bundle.file(entry.file), precision="fp32", threads=threads)
        if set(self._graph.inputs) != set(INPUTS):
            raise BundleError(
                f"bundle {bundle.manifest.name}: {entry.file} takes {', '.join(self._graph.inputs)}, expected "
                f"{', '.join(INPUTS)}; export the bundle again"
            )

    @property
    def logit_scale(self) -> float:
        """What a cosine is multiplied with to give a logit."""
        return self._entry.logit_scale

    def ids(self, text: str) -> NDArray[np.int64]:
        """Return the token ids of a text, special tokens included; shape (T,).

        Raises
        ------
        DecipherError
            If the text is empty, holds no word that the tokenizer knows, or is longer than the tower reads.
        """
        shown = _shown(text)
        if not text.strip():
            raise DecipherError("a prompt is empty; say in words what to look for")
        if len(text) > MOST_CHARACTERS:
            raise DecipherError(f"the text {shown} has {len(text)} characters; shorten it to a report's length")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DecipherError(f"the text {shown} is not valid Unicode; type it again") from None
        encoding = self._tokenizer.encode(text)
        ids, special = encoding.ids, encoding.special_tokens_mask
        words = [i for i, is_special in zip(ids, special, strict=True) if not is_special and i != self._unknown]
        if not words:
            raise DecipherError(f"the text {shown} holds no word that the model knows; say it in plain English")
        if len(ids) > self._entry.max_tokens:
            raise DecipherError(
                f"the text {shown} is {len(ids)} tokens long and the model reads {self._entry.max_tokens}; shorten it"
            )
        return np.asarray(ids, np.int64)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Each goes through the tower alone, so that none depends on its neighbours and nothing is padded.

        Parameters
        ----------
        texts : sequence of N str

        Returns
        -------
        ndarray, shape (N, E), float32
            L2-normalised, in the space of the series' embeddings.

        Raises
        ------
        DecipherError
            As ``ids``.
        BundleError
            If the tower gives something other than unit vectors of the encoder's size.
        """
        rows = [self._embed_ids(self.ids(text)) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self._size), np.float32)

    def _embed_ids(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        outputs = self._graph.run(dict(zip(INPUTS, (ids[None], np.ones_like(ids)[None]), strict=True)))
        vector = outputs.get(OUTPUT)
        if vector is None or vector.shape != (1, self._size) or vector.dtype != np.float32:
            found = "none" if vector is None else f"one of shape {vector.shape} and type {vector.dtype}"
            raise BundleError(
                f"{self._entry.file}: expected an {OUTPUT} of shape (1, {self._size}) and type float32, the graph "
                f"gives {found}; export the bundle again"
            )
        if not abs(float(np.linalg.norm(vector)) - 1) <= UNIT_TOLERANCE:  # NaN is refused too
            raise BundleError(f"{self._entry.file}: gives an embedding that is no unit vector; export the bundle again")
        row: NDArray[np.float32] = vector[0]
        return row


@dataclass(frozen=True)
class Prompts:
    """Prompts ready to be compared with series.

    Attributes
    ----------
    texts : tuple of N str
    vectors : ndarray, shape (N, E), float32
        L2-normalised.
    logit_scale : float
        Learned with the text tower.
    """

    texts: tuple[str, ...]
    vectors: NDArray[np.float32]
    logit_scale: float

    def compare(self, embedding: NDArray[np.float32], scope: ScopeAnswer) -> dict[str, PromptAnswer]:
        """Compare a series with the prompts.

        Parameters
        ----------
        embedding : ndarray, shape (E,)
            Of the series, L2-normalised.
        scope : ScopeAnswer
            Of the series; out of scope nothing is answered.

        Returns
        -------
        dict
            For each prompt its cosine and, where there are several, its probability among them: the softmax over all
            prompts of ``logit_scale * cosine`` (Radford et al. 2021, arXiv:2103.00020, section 3.1.2).
        """
        if not scope.inside:
            return dict.fromkeys(self.texts, PromptAnswer(not_answered=f"out of scope: {scope.reason}"))
        cosines = (self.vectors.astype(np.float64) @ embedding.astype(np.float64)).clip(-1, 1)  # lengths are about 1
        logits = self.logit_scale * cosines
        weights = np.exp(logits - logits.max())
        shares = weights / weights.sum()
        alone = len(self.texts) == 1  # one of one is 1, whatever it says
        return {
            text: PromptAnswer(float(cosine), None if alone else float(share))
            for text, cosine, share in zip(self.texts, cosines, shares, strict=True)
        }


def read_prompts(bundle: Bundle, texts: Sequence[str], threads: int) -> Prompts:
    """Embed prompts with a bundle's text tower.

    Raises
    ------
    DecipherError
        As ``TextTower`` and ``TextTower.embed``; and where a prompt is given twice, since probabilities are by prompt.
    """
    for text in texts:
        if list(texts).count(text) > 1:
            raise DecipherError(f"the prompt {_shown(text)} is given twice; give it once")
    tower = TextTower(bundle, threads)
    return Prompts(tuple(texts), tower.embed(texts), tower.logit_scale)


def _load_tokenizer(content: bytes, name: str) -> Any:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more special
        reason = " ".join(str(error).split())[:120]
        raise BundleError(f"{name} is not a tokenizer that can be read ({reason}); export the bundle again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()  # what is too long is refused and not cut
    return tokenizer


def _unknown_id(tokenizer: Any, content: bytes) -> int | None:
    """Return the id that stands for what the vocabulary lacks, where there is one."""
    token = json.loads(content).get("model", {}).get("unk_token")
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found


def _shown(text: str) -> str:
    return f"{text[:SHOWN]!r}{'...' if len(text) > SHOWN else ''}"
