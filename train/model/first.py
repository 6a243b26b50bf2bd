"""The first model: the encoder with its heads and scope, as one module whose state is what a weights file holds."""

from __future__ import annotations

from torch import Tensor, nn

from .heads import SEQUENCES, LesionHead, SequenceHead
from .scope import Scope
from .vit import ViT, ViTConfig

TISSUES = 4  # grey, white, CSF, lesion


class FirstModel(nn.Module):
    """Encoder, ``sequence`` and ``lesion`` heads, and scope.

    ``tissue`` is for training only: what each patch is made of teaches the encoder more than two labels a volume do.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.encoder = ViT(config)
        self.sequence = SequenceHead(config.embedding_size)
        self.lesion = LesionHead(config.width)
        self.tissue = nn.Linear(config.width, TISSUES)
        self.scope = Scope(config.embedding_size, len(SEQUENCES))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map embedded tokens (B, K, C) to everything that training and evaluation look at."""
        patch, embedding = self.encoder.encode(x)
        lesion, evidence = self.lesion(patch)
        return {
            "embedding": embedding,
            "sequence": self.sequence(embedding),
            "lesion": lesion,
            "evidence": evidence,
            "tissue": self.tissue(patch),
            "headness": self.scope.headness(embedding),
        }
