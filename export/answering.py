"""Decoders as one graph: called with what they look at alone, and what they share computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from decipher_rt.train.decoders.contract import Decoder, seen_as_encoder
from decipher_rt.train.decoders.sight import Sight

INPUTS = ("patch", "tokens", "embedding", "volume", "window")


class Answering(nn.Module):
    """Some decoders, and where they stand upon a segmentation its sight, which may be one of them itself.

    Attributes
    ----------
    inputs : of ``forward``, in order. A graph that is also given the rest depends on the shapes of that.
    """

    def __init__(self, decoders: Sequence[Decoder], sight: Sight | None = None) -> None:
        super().__init__()
        self.decoders, self.sight = nn.ModuleList(decoders), sight
        self.segmentation = sight.segmentation if sight else None
        # Asked here: where torch.export traces, no module is the one that it was.
        self._segments = tuple(sight is not None and one is sight.segmentation for one in decoders)
        looking = (*decoders, *([sight.segmentation] if sight else []))
        self.inputs = tuple(name for name in INPUTS if any(name in one.inputs for one in looking))

    def forward(
        self,
        first: Tensor,
        second: Tensor | None = None,
        third: Tensor | None = None,
        fourth: Tensor | None = None,
        fifth: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Answer, in the order of the decoders."""
        given = dict(zip(self.inputs, (first, second, third, fourth, fifth), strict=False))
        nothing = first.new_zeros(0)
        patch, tokens, embedding, volume, window = (given.get(name) for name in INPUTS)
        image = None if volume is None or window is None else seen_as_encoder(volume, window)
        patch, tokens, embedding = (nothing if one is None else one for one in (patch, tokens, embedding))
        if self.sight is None:
            return tuple(cast("Decoder", decoder)(patch, tokens, embedding, image) for decoder in self.decoders)
        segmentation = self.sight.segmentation
        features = segmentation.features(patch, tokens, image)
        beside = self.sight.beside(patch, tokens, features)
        return tuple(
            segmentation.answer_from(features, tokens) if segments else decoder(beside, tokens, embedding)
            for decoder, segments in zip(self.decoders, self._segments, strict=True)
        )
