"""Full (non-causal) attention, forward only, in the manner of FlashAttention-2 (arXiv 2307.08691).

A program owns BLOCK_M queries of one head and walks over the keys in blocks of BLOCK_N with an online softmax in
base 2: the scores never leave the chip. Head dims that are not a power of two are split into two that are
(96 = 64 + 32), so that the tensor cores multiply no padding. Whole blocks of keys run without a mask; the ragged rest
runs once, masked. Pointers only, no tensor descriptors: this kernel is also what goes into a bundle.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# (Triton has no types: its kernels are the functions without any.)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import HEAD_DIMS, check_attention
from .config import AttentionConfig, architecture_of, attention_config
from .reference import softmax_scale


@triton.jit
def _attend(
    state,  # (row_max, row_sum, acc...): of BLOCK_M queries; acc is one tile a part of the head dim
    queries,  # one tile (BLOCK_M, d_i) a part of the head dim
    k_ptrs,  # one tile of pointers (BLOCK_N, d_i) a part
    v_ptrs,
    in_keys,  # (BLOCK_N,) used where MASKED
    SCALE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Bring one block of keys and values into the running softmax."""
    PARTS: tl.constexpr = len(queries)
    keys = _load(k_ptrs[0], in_keys, MASKED)
    scores = tl.dot(queries[0], keys.T)
    if PARTS == 2:
        keys_1 = _load(k_ptrs[1], in_keys, MASKED)
        scores = tl.dot(queries[1], keys_1.T, scores)
    if MASKED:
        scores = tl.where(in_keys[None, :], scores, float("-inf"))

    row_max = tl.maximum(state[0], tl.max(scores, 1) * SCALE)
    weights = tl.exp2(scores * SCALE - row_max[:, None])
    shrink = tl.exp2(state[0] - row_max)
    row_sum = state[1] * shrink + tl.sum(weights, 1)

    values = _load(v_ptrs[0], in_keys, MASKED)
    weights = weights.to(values.dtype)
    acc = tl.dot(weights, values, state[2] * shrink[:, None])
    if PARTS == 2:
        values_1 = _load(v_ptrs[1], in_keys, MASKED)
        return (row_max, row_sum, acc, tl.dot(weights, values_1, state[3] * shrink[:, None]))
    else:  # noqa: RET505 (Triton wants both returns inside the branches)
        return (row_max, row_sum, acc)


@triton.jit
def _load(ptrs, in_keys, MASKED: tl.constexpr):
    return tl.load(ptrs, mask=in_keys[:, None], other=0.0) if MASKED else tl.load(ptrs)


@triton.jit
def attention_kernel(
    q_ptr,  # (B, H, N, d) fp16 or bf16; d contiguous
    k_ptr,  # (B, H, N, d)
    v_ptr,  # (B, H, N, d)
    n,  # N
    stride_qb,
    stride_kb,
    stride_vb,
    stride_ob,  # from one volume to the next, in elements
    stride_qh,
    stride_kh,
    stride_vh,
    stride_oh,  # from one head to the next
    stride_qn,
    stride_kn,
    stride_vn,
    stride_on,  # from one token to the next
    out_ptr,  # (B, H, N, d); d contiguous
    SCALE: tl.constexpr,  # log2(e) / sqrt(d)
    D0: tl.constexpr,
    D1: tl.constexpr,  # d = D0 + D1, powers of two, D1 may be 0
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend for BLOCK_M queries of one head: program (query block, head, volume)."""
    # Blocks of queries of one head run next to each other: they share its keys and values in L2.
    query = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    in_queries = query < n
    key = tl.arange(0, BLOCK_N)
    d0 = tl.arange(0, D0)

    q = q_ptr + batch * stride_qb + head * stride_qh
    k = k_ptr + batch * stride_kb + head * stride_kh
    v = v_ptr + batch * stride_vb + head * stride_vh
    out = out_ptr + batch * stride_ob + head * stride_oh
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.full([BLOCK_M], 0.0, tl.float32)
    q_tile = q + query[:, None] * stride_qn + d0[None, :]
    k_tile = k + key[:, None] * stride_kn + d0[None, :]
    v_tile = v + key[:, None] * stride_vn + d0[None, :]
    q_0 = tl.load(q_tile, mask=in_queries[:, None], other=0.0)
    acc_0 = tl.full([BLOCK_M, D0], 0.0, tl.float32)
    if D1 > 0:
        d1 = tl.arange(0, D1)
        q_1 = tl.load(q + query[:, None] * stride_qn + (D0 + d1)[None, :], mask=in_queries[:, None], other=0.0)
        queries = (q_0, q_1)
        k_ptrs = (k_tile, k + key[:, None] * stride_kn + (D0 + d1)[None, :])
        v_ptrs = (v_tile, v + key[:, None] * stride_vn + (D0 + d1)[None, :])
        state = (row_max, row_sum, acc_0, tl.full([BLOCK_M, D1], 0.0, tl.float32))
    else:
        queries = (q_0,)
        k_ptrs = (k_tile,)
        v_ptrs = (v_tile,)
        state = (row_max, row_sum, acc_0)

    whole = n // BLOCK_N * BLOCK_N
    for _ in range(0, whole, BLOCK_N):
        state = _attend(state, queries, k_ptrs, v_ptrs, key, SCALE, False)
        if D1 > 0:
            k_ptrs = (k_ptrs[0] + BLOCK_N * stride_kn, k_ptrs[1] + BLOCK_N * stride_kn)
            v_ptrs = (v_ptrs[0] + BLOCK_N * stride_vn, v_ptrs[1] + BLOCK_N * stride_vn)
        else:
            k_ptrs = (k_ptrs[0] + BLOCK_N * stride_kn,)
            v_ptrs = (v_ptrs[0] + BLOCK_N * stride_vn,)
    # At most one turn. Not pipelined: it would only cost shared memory.
    for start in tl.range(whole, n, BLOCK_N, num_stages=1):
        state = _attend(state, queries, k_ptrs, v_ptrs, start + key < n, SCALE, True)

    inverse = 1.0 / state[1]
    out_tile = out + query[:, None] * stride_on + d0[None, :]
    tl.store(out_tile, (state[2] * inverse[:, None]).to(out_ptr.dtype.element_ty), mask=in_queries[:, None])
    if D1 > 0:
        out_tile = out + query[:, None] * stride_on + (D0 + d1)[None, :]
        tl.store(out_tile, (state[3] * inverse[:, None]).to(out_ptr.dtype.element_ty), mask=in_queries[:, None])


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, config: AttentionConfig | None = None, out: Tensor | None = None
) -> Tensor:
    """Launch the kernel: ``softmax(q kᵀ / sqrt(d)) v``.

    Parameters
    ----------
    q, k, v : Tensor of float16 or bfloat16, shape (B, H, N, d), d = 32, 64 or 96
        Any strides but the last, which must be 1: views into one (B, N, 3, H, d) projection are taken as they are.
    config : AttentionConfig, optional
        Tile sizes; by default the data in ``kernels/tuned`` for the device.
    out : Tensor, optional
        Preallocated result of the same shape and dtype, last stride 1.

    Returns
    -------
    Tensor, shape (B, H, N, d)
        Laid out as (B, N, H, d), so that joining the heads is a view.

    Raises
    ------
    ValueError
        Where shapes, dtypes or strides do not fit; the message names the argument.
    """
    check_attention(q, k, v)
    B, H, N, d = q.shape
    if out is None:
        out = torch.empty((B, N, H, d), dtype=q.dtype, device=q.device).transpose(1, 2)
    elif out.shape != q.shape or out.dtype != q.dtype or out.stride(-1) != 1:
        raise ValueError(
            f"attention: out is {out.dtype} {tuple(out.shape)}, expected {q.dtype} {tuple(q.shape)}, last stride 1"
        )
    if q.numel() == 0:
        return out
    if config is None:
        config = attention_config(architecture_of(q.device), d, N, B * H)
    strides = [t.stride(axis) for axis in (0, 1, 2) for t in (q, k, v, out)]
    d0, d1 = HEAD_DIMS[d]
    with torch.cuda.device(q.get_device()):  # Triton launches on the current device
        attention_kernel[(triton.cdiv(N, config.block_m), H, B)](
            q,
            k,
            v,
            N,
            *strides,
            out,
            SCALE=softmax_scale(d),
            D0=d0,
            D1=d1,
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
    return out
