"""What each kernel computes, in plain PyTorch operators.

Called with ``dtype=torch.float64`` these are the oracles of the tests; with ``torch.float32`` they are what the custom
operators run on the CPU and what is used wherever the kernels are switched off. Nothing here imports Triton.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW_EPS = 1e-6
"""Smallest width of the intensity window: a constant volume has low == high and must not divide by zero."""


def patch_embed3d_reference(
    volume: Tensor,
    window: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    patch: tuple[int, int, int],
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Clip to the window, map it to -1..1, gather the patches, project, add bias and position.

    The normalisation is the encoder's (``train/model/vit.py``):
    ``clamp((x - low) / max(high - low, 1e-6), 0, 1) * 2 - 1``.

    Parameters
    ----------
    volume : Tensor, shape (B, D, H, W)
        The resampled grid, not normalised.
    window : Tensor, shape (B, 2)
        Low and high percentile of each volume, in the volume's units.
    tokens : Tensor of int32 or int64, shape (B, K)
        Flat patch indices, row-major over the patch grid (D/pd, H/ph, W/pw). An index outside gives a row of NaN.
    weight : Tensor, shape (C, P)
        Projection; P = pd * ph * pw, row-major over the patch.
    bias : Tensor, shape (C,)
    position : Tensor, shape (N, C)
        Position embedding of each patch of the grid; N = D/pd * H/ph * W/pw.
    patch : (pd, ph, pw)
        Patch size in voxels.
    dtype : torch.dtype
        Precision of the whole computation and of the result.

    Returns
    -------
    Tensor of ``dtype``, shape (B, K, C)
    """
    (B, D, H, W), (pd, ph, pw) = volume.shape, patch
    N = (D // pd) * (H // ph) * (W // pw)
    split = volume.to(dtype).reshape(B, D // pd, pd, H // ph, ph, W // pw, pw)
    patches = split.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, N, pd * ph * pw)
    inside = (tokens >= 0) & (tokens < N)
    index = torch.where(inside, tokens, 0).long()
    kept = torch.gather(patches, 1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    low, high = window.to(dtype).reshape(B, 2, 1, 1).unbind(1)
    normal = ((kept - low) / (high - low).clamp_min(WINDOW_EPS)).clamp(0.0, 1.0) * 2.0 - 1.0
    out = normal @ weight.to(dtype).T + bias.to(dtype) + position.to(dtype)[index]
    return out.masked_fill(~inside.unsqueeze(-1), math.nan)


def tissue_counts_reference(
    volume: Tensor, threshold: Tensor, patch: tuple[int, int, int], dtype: torch.dtype = torch.float64
) -> Tensor:
    """Count the voxels of each patch that are above a threshold; every type of voxel is exact in ``dtype``.

    Parameters
    ----------
    volume : Tensor, shape (B, D, H, W)
        The resampled grid, not normalised.
    threshold : Tensor, shape (B,)
        Of each volume, in the volume's units.
    patch : (pd, ph, pw)
        Patch size in voxels.
    dtype : torch.dtype
        In which is compared.

    Returns
    -------
    Tensor of int32, shape (B, N)
        Row-major over the patch grid (D/pd, H/ph, W/pw). NaN is above nothing.
    """
    (B, D, H, W), (pd, ph, pw) = volume.shape, patch
    above = volume.to(dtype) > threshold.to(dtype).reshape(B, 1, 1, 1)
    split = above.reshape(B, D // pd, pd, H // ph, ph, W // pw, pw)
    return split.sum(dim=(2, 4, 6), dtype=torch.int32).flatten(1)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Full softmax attention, ``softmax(q kᵀ / sqrt(d)) v``, written out.

    Parameters
    ----------
    q, k, v : Tensor, shape (B, H, N, d)
    dtype : torch.dtype
        Precision of the whole computation and of the result.

    Returns
    -------
    Tensor of ``dtype``, shape (B, H, N, d)
    """
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, dim=-1) @ v.to(dtype)


def softmax_scale(head_dim: int) -> float:
    """Return what turns a dot product of q and k into an exponent of 2: log2(e) / sqrt(d)."""
    return math.log2(math.e) / math.sqrt(head_dim)
