"""The text tower: a BERT encoder, and what turns its tokens into one unit vector in the space shared with images.

The encoder is BERT's to the letter (arXiv 1810.04805: learned positions, norm after each residual, GELU), so that any
BERT that somebody else has pretrained fits; there is no dropout, because reports are drawn anew at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .vit import take_rows


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text encoder.

    Attributes
    ----------
    width, depth, heads : channels C of a token (a multiple of ``heads``), layers, attention heads
    hidden : channels inside the MLP
    vocabulary : entries of the tokenizer that the embedding table has room for
    max_tokens : longest text, [CLS] and [SEP] included; longer ones are cut
    norm_epsilon : of every LayerNorm
    """

    width: int
    depth: int
    heads: int
    hidden: int
    vocabulary: int
    max_tokens: int
    norm_epsilon: float = 1e-12

    PRESETS: ClassVar[dict[str, TextConfig]] = {}

    def check(self, key: str = "text") -> None:
        """Raise ValueError by key where the sizes contradict each other."""
        for name in ("width", "depth", "heads", "hidden", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{key}.{name} is {getattr(self, name)}, expected 1 or more")
        if self.width % self.heads:
            raise ValueError(f"{key}.width is {self.width}, expected a multiple of {key}.heads ({self.heads})")
        if self.max_tokens < 3:
            raise ValueError(f"{key}.max_tokens is {self.max_tokens}, expected 3 or more ([CLS], a word, [SEP])")


TextConfig.PRESETS.update(
    tiny=TextConfig(width=128, depth=4, heads=4, hidden=512, vocabulary=2048, max_tokens=160),
    small=TextConfig(width=384, depth=6, heads=6, hidden=1536, vocabulary=8192, max_tokens=256),
    base=TextConfig(width=768, depth=12, heads=12, hidden=3072, vocabulary=30522, max_tokens=512),
)


class TextTower(nn.Module):
    """Encoder, mean over the real tokens, standardised, projected, normalised.

    What all texts have in common is most of the mean token. ``pooled_mean`` and ``pooled_var`` take it out; they are
    measured once before alignment and constant from then on, so that no text's embedding depends on another's.

    Parameters
    ----------
    config : TextConfig
    embedding_size : int
        E, of the image encoder.
    """

    pooled_mean: Tensor
    pooled_var: Tensor

    def __init__(self, config: TextConfig, embedding_size: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = TextEncoder(config)
        self.register_buffer("pooled_mean", torch.zeros(config.width))
        self.register_buffer("pooled_var", torch.ones(config.width))
        self.projection = nn.Linear(config.width, embedding_size, bias=False)
        nn.init.trunc_normal_(self.projection.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts.

        Parameters
        ----------
        input_ids : Tensor, shape (B, T), int64
            [CLS] ... [SEP], then padding.
        attention_mask : Tensor, shape (B, T), int64
            1 for real tokens, 0 for padding.

        Returns
        -------
        Tensor, shape (B, E), float32
            Unit vectors.
        """
        pooled = self.pool(self.encoder(input_ids, attention_mask), attention_mask)
        standard = (pooled - self.pooled_mean.float()) * torch.rsqrt(self.pooled_var.float() + 1e-5)
        return F.normalize(self.projection(standard.to(self.projection.weight.dtype)).float(), dim=-1)

    def pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the real tokens of (B, T, C), shape (B, C), in float32."""
        real = attention_mask.float().unsqueeze(-1)
        return (states.float() * real).sum(dim=1) / real.sum(dim=1)


class TextEncoder(nn.Module):
    """Token and position embeddings, then post-norm transformer layers."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.blocks = nn.ModuleList([TextBlock(config) for _ in range(config.depth)])
        self.apply(_initialise)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map (B, T) tokens and their mask to states (B, T, C)."""
        x = self.norm(take_rows(self.words.weight, input_ids) + self.positions[: input_ids.shape[1]])
        real = (attention_mask > 0)[:, None, None, :]
        for block in self.blocks:
            x = block(x, real)
        return x


class TextBlock(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        C = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)
        self.norm1 = nn.LayerNorm(C, eps=config.norm_epsilon)
        self.mlp = nn.Sequential(nn.Linear(C, config.hidden), nn.GELU(), nn.Linear(config.hidden, C))
        self.norm2 = nn.LayerNorm(C, eps=config.norm_epsilon)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Map (B, T, C) to the same; ``real`` (B, 1, 1, T) says which keys may be looked at."""
        B, T, C = x.shape
        q, k, v = (y.reshape(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=real)
        x = self.norm1(x + self.out(seen.transpose(1, 2).reshape(B, T, C)))
        return self.norm2(x + self.mlp(x))


class MaskedLanguageHead(nn.Module):
    """Says which word stood where a token was masked; the table of words is the encoder's own."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.apply(_initialise)

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        """Map states (N, C) and the table of words (V, C) to logits (N, V)."""
        return F.linear(self.norm(F.gelu(self.dense(states))), words, self.bias)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
