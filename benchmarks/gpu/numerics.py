"""The kernels on this card against their fp64 references, at the sizes of the encoder and at odd ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu import measure

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ATTENTION_SLACK = 2.0**-13
"""Relative: exp2 of the hardware and fp32 scores, beside two roundings to half."""
VOXEL_SLACK = 2.0**-17
"""Absolute, of a normalised voxel: fp32 arithmetic, and sums of up to 4096 fp32 products."""

ATTENTION_SHAPES = ((2, 3, 517), (1, 12, 128), (1, 2, 1), (1, 2, 1000), (3, 1, 63))
"""(B, H, N): the encoder's, and tails of every kind."""
PATCH_SHAPES = (
    ((8, 8, 8), (16, 16, 16), 2, 512, 768),
    ((12, 12, 12), (8, 8, 8), 1, 130, 192),
    ((2, 3, 2), (5, 3, 4), 3, 7, 40),
)
"""(patches along each axis, patch size, B, K, C): base, the shipped model, and one that is no multiple of anything."""


@dataclass(frozen=True)
class Check:
    """One comparison: the largest error and how large it may be; counts may not differ at all."""

    case: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is a number within its bound."""
        return self.error <= self.bound


def run() -> list[Check]:
    """Compare the kernels on the current device."""
    from decipher_rt.kernels.config import architecture_of

    dtypes = [torch.float16]
    if architecture_of(torch.device(measure.DEVICE)) >= 80:
        dtypes.append(torch.bfloat16)
    torch.manual_seed(0)
    with torch.device(measure.DEVICE):
        half = [check for dtype in dtypes for check in (*_attention(dtype), *_patch_embed3d(dtype))]
        return [*half, *_tissue_counts()]


def _attention(dtype: torch.dtype) -> Iterator[Check]:
    from decipher_rt.kernels.attention import attention
    from decipher_rt.kernels.reference import attention_reference

    for d in (32, 64, 96):
        for B, H, N in ATTENTION_SHAPES:
            # Poisoned neighbours on every side, as a view into one projection.
            buffer = torch.full((B, N + 70, 3, H, d), float("nan"), dtype=dtype)
            inside = buffer[:, 35 : 35 + N].copy_(torch.randn(B, N, 3, H, d))
            q, k, v = inside.permute(2, 0, 3, 1, 4).unbind(0)
            guarded = torch.full((B, N + 70, H, d), -77.0, dtype=dtype)
            out = guarded[:, 35 : 35 + N].fill_(float("nan")).transpose(1, 2)
            attention(q, k, v, out=out)
            bound = float(v.abs().max()) * (2 * UNIT_ROUNDOFF[dtype] + ATTENTION_SLACK)
            error = _largest(out.double() - attention_reference(q, k, v))
            if not bool((guarded[:, :35] == -77).all() and (guarded[:, 35 + N :] == -77).all()):
                error = float("inf")
            yield Check(f"attention B={B} H={H} N={N} d={d} {dtype}".replace("torch.", ""), error, bound)


def _patch_embed3d(dtype: torch.dtype) -> Iterator[Check]:
    from decipher_rt.kernels.patch_embed3d import patch_embed3d
    from decipher_rt.kernels.reference import patch_embed3d_reference

    for grid, patch, B, K, width in PATCH_SHAPES:
        for voxels in (torch.int16, torch.uint16, torch.float16, torch.float32):
            shape = [g * p for g, p in zip(grid, patch, strict=True)]
            volume = (torch.rand(B, *shape) * 2000).to(voxels)
            window = torch.tensor([[50.0, 1500.0]]).repeat(B, 1)
            patches, size = grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2]
            tokens = torch.randint(patches, (B, K))
            weight = (torch.randn(width, size) / size**0.5).to(dtype)
            bias, position = torch.randn(width), torch.randn(patches, width)
            arguments = (volume, window, tokens, weight, bias, position, patch)
            out = torch.full((B, K, width), float("nan"))
            patch_embed3d(*arguments, out=out)
            bound = float(weight.double().abs().sum(1).max()) * (UNIT_ROUNDOFF[dtype] + VOXEL_SLACK)
            error = _largest(out.double() - patch_embed3d_reference(*arguments))
            name = f"patch_embed3d {'x'.join(map(str, shape))} {voxels}, {'x'.join(map(str, patch))}, C={width} {dtype}"
            yield Check(name.replace("torch.", ""), error, bound)


def _tissue_counts() -> Iterator[Check]:
    from decipher_rt.kernels.reference import tissue_counts_reference
    from decipher_rt.kernels.tissue_counts import tissue_counts

    for grid, patch, B, _, _ in PATCH_SHAPES:
        for voxels in (torch.int16, torch.uint16, torch.float16, torch.float32):
            shape = [g * p for g, p in zip(grid, patch, strict=True)]
            # Whole numbers, many of them at the threshold.
            volume, threshold = torch.randint(0, 300, (B, *shape)).to(voxels), torch.full((B,), 150.0)
            out = torch.full((B, grid[0] * grid[1] * grid[2]), -1, dtype=torch.int32)
            tissue_counts(volume, threshold, patch, out=out)
            error = _largest((out - tissue_counts_reference(volume, threshold, patch)).double())
            name = f"tissue_counts {'x'.join(map(str, shape))} {voxels}, {'x'.join(map(str, patch))}"
            yield Check(name.replace("torch.", ""), error, 0.0)


def _largest(error: Tensor) -> float:
    """Return the largest absolute error; NaN stays NaN, which is within no bound."""
    return float(error.abs().max())
