"""Patch embedding of a 3D grid in one launch: clip, normalise, gather, project, add bias and position.

A gathered GEMM: rows are the kept patches of all volumes (B * K), columns the C channels, the inner axis the P voxels
of a patch. A program owns BLOCK_T rows and BLOCK_C channels and walks over P; the voxels of its rows are loaded from
the volume as it lies (contiguous along W), clipped and normalised in fp32 and rounded once to the operand type of the
tensor cores. Neither the patches nor the normalised volume ever exist in memory.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# (Triton has no types: its kernels are the functions without any.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import check_patch_embed3d
from .config import PatchEmbed3dConfig, architecture_of, patch_embed3d_config
from .reference import WINDOW_EPS


@triton.jit
def patch_embed3d_kernel(
    volume_ptr,  # (B, D, H, W) int16, uint16, fp16 or fp32; any strides
    window_ptr,  # (B, 2) fp32: low, high
    tokens_ptr,  # (B, K) int32 or int64: flat patch index, row-major over (GRID_D, GRID_H, GRID_W)
    weight_ptr,  # (C, P) fp16 or bf16; P = PATCH_D * PATCH_H * PATCH_W
    bias_ptr,  # (C,) any float
    position_ptr,  # (N, C) any float; N = GRID_D * GRID_H * GRID_W
    rows,  # B * K
    tokens_per_volume,  # K
    stride_b,
    stride_d,
    stride_h,
    stride_w,  # of the volume, in elements
    out_ptr,  # (B, K, C) any float
    GRID_D: tl.constexpr,
    GRID_H: tl.constexpr,
    GRID_W: tl.constexpr,  # patches along each axis
    PATCH_D: tl.constexpr,
    PATCH_H: tl.constexpr,
    PATCH_W: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    GROUP_T: tl.constexpr,
):
    """Embed BLOCK_T patches into BLOCK_C channels."""
    P: tl.constexpr = PATCH_D * PATCH_H * PATCH_W
    N: tl.constexpr = GRID_D * GRID_H * GRID_W
    # L2 reuse: programs that share rows or weights run next to each other, GROUP_T row blocks under all channel blocks.
    blocks_c: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    blocks_t = (rows + BLOCK_T - 1) // BLOCK_T
    program = tl.program_id(0)
    group = program // (GROUP_T * blocks_c)
    group_size = tl.minimum(blocks_t - group * GROUP_T, GROUP_T)
    block_t = group * GROUP_T + program % (GROUP_T * blocks_c) % group_size
    block_c = program % (GROUP_T * blocks_c) // group_size

    row = block_t * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_rows = row < rows
    in_channels = channel < C
    volume_index = row // tokens_per_volume
    # The index is judged at its full width: a 64-bit one must not wrap into the grid.
    token = tl.load(tokens_ptr + row, mask=in_rows, other=-1)
    inside = (token >= 0) & (token < N)
    token = tl.where(inside, token, 0).to(tl.int32)
    low = tl.load(window_ptr + 2 * volume_index, mask=in_rows, other=0.0).to(tl.float32)
    high = tl.load(window_ptr + 2 * volume_index + 1, mask=in_rows, other=1.0).to(tl.float32)
    scale = 1.0 / tl.maximum(high - low, EPS)

    corner = (
        volume_index.to(tl.int64) * stride_b
        + (token // (GRID_H * GRID_W) * PATCH_D) * stride_d
        + (token // GRID_W % GRID_H * PATCH_H) * stride_h
        + (token % GRID_W * PATCH_W) * stride_w
    )
    row_ptr = volume_ptr + corner
    column_ptr = weight_ptr + channel * P

    acc = tl.full([BLOCK_T, BLOCK_C], 0.0, tl.float32)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        step = p // (PATCH_H * PATCH_W) * stride_d + p // PATCH_W % PATCH_H * stride_h + p % PATCH_W * stride_w
        voxel_mask = inside[:, None]
        weight_mask = in_channels[None, :]
        if P % BLOCK_P != 0:
            voxel_mask = voxel_mask & (p < P)[None, :]
            weight_mask = weight_mask & (p < P)[:, None]
        voxels = tl.load(row_ptr[:, None] + step[None, :], mask=voxel_mask, other=0).to(tl.float32)
        weights = tl.load(column_ptr[None, :] + p[:, None], mask=weight_mask, other=0.0)
        # NaN voxels stay NaN, as torch's clamp keeps them: a broken resampling must not look like air.
        share = tl.clamp((voxels - low[:, None]) * scale[:, None], 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        acc = tl.dot((share * 2.0 - 1.0).to(weights.dtype), weights, acc)

    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0).to(tl.float32)
    out_mask = in_rows[:, None] & in_channels[None, :]
    position = tl.load(position_ptr + token[:, None] * C + channel[None, :], mask=out_mask & inside[:, None], other=0.0)
    acc += bias[None, :] + position.to(tl.float32)
    acc = tl.where(inside[:, None], acc, float("nan"))
    out = out_ptr + row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=out_mask)


def patch_embed3d(
    volume: Tensor,
    window: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    patch: tuple[int, int, int],
    out_dtype: torch.dtype | None = None,
    *,
    config: PatchEmbed3dConfig | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Launch the kernel. Shapes and meaning as in :func:`..reference.patch_embed3d_reference`.

    The formula is the encoder's, ``clamp((x - low) / max(high - low, 1e-6), 0, 1) * 2 - 1``, in fp32, rounded to the
    dtype of ``weight``, then a GEMM with fp32 accumulation; bias and position are added in fp32, and the sum is
    rounded once.
    A token index outside ``0 .. N-1`` reads nothing and gives a row of NaN.

    Parameters
    ----------
    volume : Tensor of int16, uint16, float16 or float32, shape (B, D, H, W)
        Any strides; fastest where W is contiguous and D and H strides are multiples of 16.
    window, tokens, weight, bias, position, patch
        As in the reference; ``weight`` in float16 or bfloat16; these are used contiguous.
    out_dtype : torch.dtype, optional
        Of the result; the dtype of ``weight`` by default.
    config : PatchEmbed3dConfig, optional
        Tile sizes; by default the data in ``kernels/tuned`` for the device.
    out : Tensor, optional
        Preallocated contiguous result of shape (B, K, C); its dtype then counts.

    Raises
    ------
    ValueError
        Where shapes or dtypes do not fit together; the message names the argument.
    """
    check_patch_embed3d(volume, window, tokens, weight, bias, position, patch)
    B, D, H, W = volume.shape
    K, C = tokens.shape[1], weight.shape[0]
    window, tokens, weight, bias, position = (t.contiguous() for t in (window.float(), tokens, weight, bias, position))
    if out is None:
        out = torch.empty((B, K, C), dtype=out_dtype or weight.dtype, device=volume.device)
    elif out.shape != (B, K, C) or not out.is_contiguous():
        raise ValueError(f"patch_embed3d: out is {tuple(out.shape)}, expected contiguous {(B, K, C)}")
    rows = B * K
    if rows == 0:
        return out
    if config is None:
        config = patch_embed3d_config(architecture_of(volume.device), rows, volume.element_size(), (D, H, W), patch)
    grid = (triton.cdiv(rows, config.block_t) * triton.cdiv(C, config.block_c),)
    with torch.cuda.device(volume.get_device()):  # Triton launches on the current device
        patch_embed3d_kernel[grid](
            volume,
            window,
            tokens,
            weight,
            bias,
            position,
            rows,
            K,
            *volume.stride(),
            out,
            GRID_D=D // patch[0],
            GRID_H=H // patch[1],
            GRID_W=W // patch[2],
            PATCH_D=patch[0],
            PATCH_H=patch[1],
            PATCH_W=patch[2],
            C=C,
            EPS=WINDOW_EPS,
            BLOCK_T=config.block_t,
            BLOCK_C=config.block_c,
            BLOCK_P=config.block_p,
            GROUP_T=config.group_t,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
    return out
