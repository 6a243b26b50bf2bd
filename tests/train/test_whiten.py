"""Starting values of the patch embedding."""

from __future__ import annotations

import torch
from torch import nn

from decipher_rt.train.model.whiten import SMALLEST_VARIANCE, whiten_patch_embed


def smooth_patches(count: int, generator: torch.Generator) -> torch.Tensor:
    """Patches of 4 x 4 x 4 voxels with most of their variance in the mean, and different amounts along each axis."""
    base = torch.randn(count, 1, generator=generator) * 3 + 0.5
    slopes = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 0.6, 0.3])
    axis = torch.linspace(-1, 1, 4)
    ramps = torch.stack([a.flatten() for a in torch.meshgrid(axis, axis, axis, indexing="ij")])
    return base + slopes @ ramps + 0.01 * torch.randn(count, 64, generator=generator)


def test_channels_are_uncorrelated_and_each_real_component_has_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = smooth_patches(4000, generator)
    embed = nn.Linear(64, 8)
    whiten_patch_embed(embed, patches)
    tokens = embed(patches)
    covariance = torch.cov(tokens.T)
    assert tokens.mean(dim=0).abs().max() < 1e-3
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-2
    assert covariance.diag()[:4].min() > 0.9  # the mean and three slopes
    assert covariance.diag()[4:].max() < 0.01**2 / SMALLEST_VARIANCE * 4  # noise is not blown up


def test_channels_beyond_the_components_keep_their_weights() -> None:
    embed = nn.Linear(64, 70)
    before = embed.weight[64:].detach().clone()
    whiten_patch_embed(embed, smooth_patches(500, torch.Generator().manual_seed(1)))
    assert torch.equal(embed.weight[64:], before)
