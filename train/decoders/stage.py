"""Training of one decoder on cached tokens, as a stage of the common loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..distributed import share
from ..views import UNIT_WINDOW
from .contract import Batch, Decoder, Rows, seen_as_encoder
from .tokens import Tokens
from .truth import known_series, require_truth

if TYPE_CHECKING:
    from ..loop import ParameterGroup
    from ..sources.example import Example, Examples

ORDER, CROPS = 11, 12  # what a generator is for
ROWS_BATCH = 8


class LossModule(nn.Module):
    """A decoder whose forward gives its losses, which is what the loop wraps."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:  # noqa: ARG002 - the loop's signature
        """Return the losses of a batch; ``loss`` weighs as much as the step has series, copies not counted."""
        raw = self.decoder.raw(batch["patch"], batch["tokens"], batch["embedding"], batch.get("image"))
        losses = self.decoder.losses(raw.float(), batch["target"], batch["tokens"])
        return {**losses, "loss": losses["loss"] * batch["share"]}


class DecoderStage:
    """A decoder, the series whose truth is known, and how they become batches.

    Parameters
    ----------
    decoder : Decoder
    tokens : Tokens
        Of the training split.
    examples : Examples
        The same split: where tissue maps are read.
    batch : int
        Series of a step, over all processes.
    seed : int

    Raises
    ------
    ValueError
        If the series cannot teach what the decoder shall answer.
    """

    def __init__(self, decoder: Decoder, tokens: Tokens, examples: Examples, batch: int, seed: int) -> None:
        self.model = LossModule(decoder)
        self.decoder, self.tokens, self.examples, self.seed = decoder, tokens, examples, seed
        self.known = require_truth(decoder, tokens.known)
        decoder.check_maps(examples[int(i)].tissue for i in self.known)
        # Series of one number of tokens go together: nothing is padded, as at inference.
        groups = np.zeros(len(self.known), int) if decoder.needs_mean_only else tokens.count[self.known]
        self._groups = [self.known[groups == K] for K in np.unique(groups)]
        self._size = batch

    @property
    def curve(self) -> tuple[str, ...]:
        """Return the losses that the curve shows."""
        return self.decoder.curve

    def start(self) -> None:
        """Set the decoder's statistics from the training series."""
        kept = self.known
        pooled = {"mean": self.tokens.mean[kept], "embedding": self.tokens.embedding[kept]}
        self.decoder.start({**pooled, "count": self.tokens.count[kept]}, [self.tokens.known[i] for i in kept])

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        """Return this process's share of a step, from the seed and the step alone.

        Its ``share`` is that of the step's series that are no copies, in every process.
        """
        everything = self.indices(step)
        indices = share(everything, rank, world_size)
        rngs = [np.random.default_rng([self.seed, CROPS, step, i]) for i in indices]
        batch = read_batch(self.decoder, self.tokens, self.examples, indices, rngs)
        return {**batch, "share": len(set(everything)) / len(everything)}

    def indices(self, step: int) -> list[int]:
        """Return the series of a step: an epoch is every series once, in batches of one number of tokens.

        The last batch of a group is filled with copies of its own series.
        """
        chunks = sum(-(-len(group) // self._size) for group in self._groups)
        epoch, place = divmod(step, chunks)
        rng = np.random.default_rng([self.seed, ORDER, epoch])
        batches: list[NDArray[np.int64]] = []
        for group in self._groups:
            order = rng.permutation(group)
            firsts = range(0, len(order), self._size)
            batches += [np.resize(order[first : first + self._size], self._size) for first in firsts]
        return [int(i) for i in batches[int(rng.permutation(chunks)[place])]]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Matrices decay; biases, gains, norms and single vectors do not."""
        parameters = list(self.model.parameters())
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "rate_scale": 1.0, "decays": True},
            {"params": [p for p in parameters if p.ndim < 2], "rate_scale": 1.0, "decays": False},
        ]

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the decoder's weights under its own names."""
        return {name.removeprefix("decoder."): tensor for name, tensor in state.items()}


def read_batch(
    decoder: Decoder,
    tokens: Tokens,
    examples: Examples,
    indices: Sequence[int],
    rngs: Sequence[np.random.Generator] = (),
) -> Batch:
    """Read series, all with the same number of tokens unless the decoder needs the mean only.

    With ``rngs``, one a series, the decoder narrows them to what a step of training sees.

    Returns
    -------
    dict
        ``patch`` (B, K, C) float32, ``tokens`` (B, K) int64, ``embedding`` (B, E) float32, ``target`` of tensors; of a
        decoder that looks at it ``image`` (B, 1, D, H, W) float32.
    """
    if decoder.needs_mean_only:
        patch = torch.from_numpy(tokens.mean[list(indices)]).unsqueeze(1)
        places = torch.zeros(len(patch), 1, dtype=torch.int64)
    else:
        encoded = [tokens[i] for i in indices]
        patch, places = torch.stack([e.patch for e in encoded]), torch.stack([e.tokens for e in encoded])
    targets, seen = [], []
    for row, index in enumerate(indices):
        example = examples[index] if decoder.reads_tissue or decoder.reads_image else None
        tissue = example.tissue if example and decoder.reads_tissue else None
        targets.append(decoder.target(tokens.known[index], tissue, places[row].numpy()))
        if example and decoder.reads_image:
            seen.append(example)
    batch: Batch = {
        "patch": patch,
        "tokens": places,
        "embedding": torch.from_numpy(tokens.embedding[list(indices)]),
        "target": {name: torch.from_numpy(np.stack([t[name] for t in targets])) for name in targets[0]},
    }
    if seen:
        batch["image"] = _stored(seen)
    if rngs:
        batch = decoder.narrow(batch, rngs)
    return {**batch, "image": _seen(batch["image"])} if seen else batch


def images_of(examples: Sequence[Example]) -> Tensor:
    """Return the grids of series as decoders see them, (B, 1, D, H, W) float32."""
    return _seen(_stored(examples))


def _stored(examples: Sequence[Example]) -> Tensor:
    """Return the grids of series as they are kept, (B, 1, D, H, W) float16."""
    return torch.from_numpy(np.stack([example.volume for example in examples])).unsqueeze(1)


def _seen(stored: Tensor) -> Tensor:
    return seen_as_encoder(stored.float(), torch.from_numpy(UNIT_WINDOW).expand(len(stored), -1))


@torch.no_grad()
def answer_rows(decoder: Decoder, tokens: Tokens, examples: Examples) -> Rows:
    """Return what calibration and figures need of every series of a split whose truth is known, in their order.

    Empty where none is.
    """
    decoder.eval()
    device = next(decoder.parameters()).device
    known = known_series(decoder, tokens.known)
    groups = np.zeros(len(known), int) if decoder.needs_mean_only else tokens.count[known]
    found: dict[int, Mapping[str, NDArray[Any]]] = {}
    for K in np.unique(groups):
        members = known[groups == K]
        for first in range(0, len(members), ROWS_BATCH):
            some = [int(i) for i in members[first : first + ROWS_BATCH]]
            batch = read_batch(decoder, tokens, examples, some)
            given = [batch[name].to(device) for name in ("patch", "tokens", "embedding", "image") if name in batch]
            target = {name: tensor.to(device) for name, tensor in batch["target"].items()}
            rows = decoder.rows(decoder.raw(*given), target, batch["tokens"].to(device))
            for place, index in enumerate(some):
                found[index] = {name: values[place] for name, values in rows.items()}
    names = next(iter(found.values())) if found else ()
    return {name: np.stack([found[int(i)][name] for i in known]) for name in names}
