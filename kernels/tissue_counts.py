"""How many voxels of each patch of a 3D grid are tissue: what token selection needs of the grid, counted where it lies.

A program owns one patch of one volume. Its rows are contiguous along W, so that a warp reads whole sectors; every voxel
is read once, and the counts are integers: the result depends on nothing but the comparison. The threshold comes ready
made from the host, because a multiply-add that is fused here and not there would move it by a rounding.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# (Triton has no types: its kernels are the functions without any.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import check_tissue_counts
from .config import TISSUE_COUNTS_WARPS, tissue_counts_blocks


@triton.jit
def tissue_counts_kernel(
    volume_ptr,  # (B, D, H, W) int16, uint16, fp16 or fp32; any strides
    threshold_ptr,  # (B,) fp32
    stride_b,
    stride_d,
    stride_h,
    stride_w,  # of the volume, in elements
    out_ptr,  # (B, N) int32; N = GRID_D * GRID_H * GRID_W
    GRID_D: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,  # patches along each axis
    PATCH_D: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Count one patch: BLOCK_R of its rows at a time, each in BLOCK_W >= PATCH_W columns."""
    N: tl.constexpr = GRID_D * GRID_H * GRID_W
    ROWS: tl.constexpr = PATCH_D * PATCH_H
    program = tl.program_id(0)
    batch = program // N
    patch = program % N
    threshold = tl.load(threshold_ptr + batch)
    corner = (
        batch.to(tl.int64) * stride_b
        + (patch // (GRID_H * GRID_W) * PATCH_D) * stride_d
        + (patch // GRID_W % GRID_H * PATCH_H) * stride_h
        + (patch % GRID_W * PATCH_W) * stride_w
    )
    column = tl.arange(0, BLOCK_W)
    count = tl.full([BLOCK_R, BLOCK_W], 0, tl.int32)
    for start in range(0, ROWS, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        inside = (row < ROWS)[:, None] & (column < PATCH_W)[None, :]
        step = (row // PATCH_H * stride_d + row % PATCH_H * stride_h)[:, None] + (column * stride_w)[None, :]
        # Every type of voxel is exact in fp32. A NaN is above nothing, as for the host.
        voxels = tl.load(volume_ptr + corner + step, mask=inside, other=0).to(tl.float32)
        count += tl.where(inside & (voxels > threshold), 1, 0)
    # Columns last: the other way round LLVM makes one population count of a thread's bits, by way of its stack.
    tl.store(out_ptr + program, tl.sum(tl.sum(count, 0), 0))


def tissue_counts(
    volume: Tensor, threshold: Tensor, patch: tuple[int, int, int], *, out: Tensor | None = None
) -> Tensor:
    """Launch the kernel. Shapes and meaning as in :func:`..reference.tissue_counts_reference`.

    Parameters
    ----------
    volume : Tensor of int16, uint16, float16 or float32, shape (B, D, H, W)
        Any strides.
    threshold : Tensor of float32, shape (B,)
    patch : (pd, ph, pw)
    out : Tensor of int32, optional
        Preallocated contiguous result of shape (B, N).

    Raises
    ------
    ValueError
        Where shapes or dtypes do not fit together; the message names the argument.
    """
    check_tissue_counts(volume, threshold, patch)
    B, D, H, W = volume.shape
    grid = (D // patch[0], H // patch[1], W // patch[2])
    shape = (B, grid[0] * grid[1] * grid[2])
    if out is None:
        out = torch.empty(shape, dtype=torch.int32, device=volume.device)
    elif out.shape != shape or out.dtype != torch.int32 or not out.is_contiguous():
        raise ValueError(
            f"tissue_counts: out is {out.dtype} {tuple(out.shape)}, expected contiguous torch.int32 {shape}"
        )
    if B == 0:
        return out
    block_r, block_w = tissue_counts_blocks(patch)
    with torch.cuda.device(volume.get_device()):  # Triton launches on the current device
        tissue_counts_kernel[(shape[0] * shape[1],)](
            volume,
            threshold.contiguous(),
            *volume.stride(),
            out,
            GRID_D=grid[0],
            GRID_H=grid[1],
            GRID_W=grid[2],
            PATCH_D=patch[0],
            PATCH_H=patch[1],
            PATCH_W=patch[2],
            BLOCK_R=block_r,
            BLOCK_W=block_w,
            num_warps=TISSUE_COUNTS_WARPS,
        )
    return out
