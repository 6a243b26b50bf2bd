"""The masked autoencoder (arXiv 2111.06377): voxels of the patches that were left out, from those that were not.

The encoder meets the visible tokens alone, as it meets the foreground alone at inference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..model.vit import Block, ViT, ViTConfig, patch_positions, take_rows
from .config import MaskedAutoencoderConfig
from .crops import CropBatch
from .losses import reconstruction_loss


class MaskedAutoencoder(nn.Module):
    """Encoder, and a small decoder that is thrown away.

    Parameters
    ----------
    encoder : ViTConfig
    config : MaskedAutoencoderConfig
    """

    position: Tensor

    def __init__(self, encoder: ViTConfig, config: MaskedAutoencoderConfig) -> None:
        super().__init__()
        self.encoder = ViT(encoder)
        self.encoder.projection.requires_grad_(False)
        sizes = dataclasses.replace(
            encoder,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            layer_scale=0.0,  # for deep networks
        )
        self.narrow = nn.Linear(encoder.width, sizes.width)
        self.mask_token = nn.Parameter(torch.zeros(sizes.width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("position", patch_positions(sizes), persistent=False)
        self.blocks = nn.ModuleList([Block(sizes) for _ in range(sizes.depth)])
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.voxels = nn.Linear(sizes.width, math.prod(encoder.patch_shape))

    def forward(self, batch: CropBatch, step: int) -> dict[str, Tensor]:  # noqa: ARG002 - the loop's contract
        """Return ``loss``, the mean over masked patches.

        Parameters
        ----------
        batch : CropBatch
            Its global crops, with the same number of masked tokens in each.
        """
        patches, tokens, mask = (x.flatten(0, 1) for x in (batch.global_patches, batch.global_tokens, batch.masks))
        crops = len(tokens)
        seen = patches[~mask].unflatten(0, (crops, -1))
        whole, patch = self.encoder.features(self.encoder.project(seen, tokens[~mask].unflatten(0, (crops, -1))))
        # The class token goes along: what the volume is as a whole has a use, so it is learned.
        narrow = self.narrow(torch.cat([whole.unsqueeze(1), patch], dim=1))
        x = self.mask_token.to(narrow.dtype).expand(crops, tokens.shape[1], -1)
        x = x.masked_scatter(~mask.unsqueeze(-1), narrow[:, 1:]) + take_rows(self.position, tokens).to(narrow.dtype)
        x = torch.cat([narrow[:, :1], x], dim=1)
        for block in self.blocks:
            x = block(x)
        hidden = self.norm(x[:, 1:])[mask]
        return {"loss": reconstruction_loss(self.voxels(hidden), patches[mask])}

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the optimiser moves."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)
