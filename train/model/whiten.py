"""Starting values of the patch embedding from the patches themselves: every token channel begins with unit variance.

The 512 voxels of a patch mostly rise and fall together: of their variance nine tenths lie in the mean, and with random
weights what is finer is lost beside it and beside the position code. The principal components of training patches,
each brought to one scale, show it from the first step (the idea of arXiv 2404.00498 for first convolutions). The map
stays one matrix and a bias, so that nothing changes at inference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST_VARIANCE = 0.05  # of a component on patches in -1..1: below it lies noise, which is not blown up


@torch.no_grad()
def whiten_patch_embed(embed: nn.Linear, patches: Tensor) -> None:
    """Set weight and bias of a patch embedding.

    Parameters
    ----------
    embed : Linear, from the P voxels of a patch to C channels
        Channels beyond the P components keep their weights.
    patches : Tensor, shape (N, P)
        Normalised patches of training volumes; N well above P.
    """
    patches = patches.double()
    mean = patches.mean(dim=0)
    variance, components = torch.linalg.eigh(torch.cov(patches.T))
    channels = min(embed.out_features, embed.in_features)
    largest = components.flip(1)[:, :channels], variance.flip(0)[:channels]
    weight = (largest[0] / (largest[1] + SMALLEST_VARIANCE).sqrt()).T
    embed.weight[:channels] = weight.to(embed.weight.dtype)
    if embed.bias is not None:
        embed.bias[:channels] = -(weight @ mean).to(embed.bias.dtype)
