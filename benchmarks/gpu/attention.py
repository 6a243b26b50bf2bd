"""The attention kernel beside every backend of ``torch.nn.functional.scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Ceilings, Deadline, Row, attempt, rate

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
KERNEL = "decipher-rt"
CHANNELS = 2048
TOKENS = 1 << 15
"""Heads times head dim, and batch times N: the large-batch setting of the FlashAttention papers, twice their tokens."""
MATH_LIMIT = 1 << 31
"""Scores that the math backend may write to memory."""


def cases(full: bool) -> Iterator[tuple[int, int, int, int, torch.dtype]]:
    """Yield (B, H, N, d, dtype); the most telling first, so that a short run has them."""
    for n in (512, 4096, 1024, 128, 256, 2048):
        yield TOKENS // n, CHANNELS // 64, n, 64, torch.float16
    yield 1, 12, 517, 64, torch.float16
    yield 1, 12, 4101, 64, torch.float16
    yield TOKENS // 512, CHANNELS // 64, 512, 64, torch.bfloat16
    if full:
        for d in (32, 96):
            for n in (512, 2048):
                yield TOKENS // n, CHANNELS // d, n, d, torch.float16


def name(B: int, H: int, N: int, d: int, dtype: torch.dtype) -> str:
    """Return how a case is called in the tables."""
    return f"B={B} H={H} N={N} d={d} {str(dtype).removeprefix('torch.')}"


def run(ceilings: Ceilings, deadline: Deadline, full: bool = True) -> list[Row]:
    """Measure every case by every method."""
    from decipher_rt.kernels.attention import attention

    rows = []
    for B, H, N, d, dtype in cases(full):
        case, precision = name(B, H, N, d, dtype), str(dtype).removeprefix("torch.")
        if precision not in ceilings.gemm_tflops:
            rows.append(Row(case, KERNEL, not_run=f"no {precision} on this card"))
            continue
        # As in the encoder: views into one projection.
        packed = torch.randn(B, N, 3, H, d, device=measure.DEVICE, dtype=dtype)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        rows_of_case = [attempt(case, KERNEL, lambda q=q, k=k, v=v: attention(q, k, v), deadline)]
        for method, backend in BACKENDS.items():
            if backend == SDPBackend.MATH and B * H * N * N > MATH_LIMIT:
                rows_of_case.append(Row(case, method, not_run="the scores would fill the memory"))
                continue
            rows_of_case.append(attempt(case, method, lambda q=q, k=k, v=v, b=backend: sdpa(q, k, v, b), deadline))
        flops, moved = 4.0 * B * H * N * N * d, 4.0 * B * H * N * d * packed.element_size()
        rows += [rate(row, ceilings, flops, moved, precision) for row in rows_of_case]
    return rows


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> Tensor:
    """Attend by one backend; raises RuntimeError where it does not take the case."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)
