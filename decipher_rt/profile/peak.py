"""What this machine's CPU can do at most, measured in the same run: a matrix product and a copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from decipher_rt.manifest import Encoder, Preprocessing

GEMM_SIZE = 2048  # 16 MiB a matrix: beyond the caches' worth of work, within 0.2 s on a laptop
COPY_BYTES = 256 << 20  # well beyond any last-level cache
REPEATS = 5


@dataclass(frozen=True)
class MachinePeak:
    """Best of several: fp32 matrix product by numpy's BLAS, all its threads; copy of a large array, read + written."""

    gemm_gflops: float
    copy_gb_s: float


def measure_peak() -> MachinePeak:
    """Measure both; takes about a second."""
    rng = np.random.default_rng(0)
    a, b = (rng.random((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(2))
    product = np.empty_like(a)
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    gemm_s = _best(lambda: np.matmul(a, b, out=product))
    copy_s = _best(lambda: np.copyto(target, source))
    return MachinePeak(2 * GEMM_SIZE**3 / gemm_s / 1e9, copied_gb_s(COPY_BYTES, copy_s))


def copied_gb_s(size: int, seconds: float) -> float:
    """Return the rate of ``size`` bytes that are read once and written once, in GB/s: both count."""
    return 2 * size / seconds / 1e9


def encoder_gflop(encoder: Encoder, spec: Preprocessing, tokens: int) -> float | None:
    """Count the multiplications and additions of the encoder's matrix products on one volume, in 10^9.

    Patch projection, and of every layer QKV, attention, output and MLP (arXiv 2010.11929). None where the manifest does
    not say the sizes.
    """
    config: Mapping[str, Any] = encoder.config
    if not all(isinstance(config.get(key), int) for key in ("depth", "mlp_ratio")):
        return None
    width, rows = encoder.width, tokens + 1 + int(config.get("registers", 0))
    layer = rows * width * width * (4 + 2 * config["mlp_ratio"]) + 2 * rows * rows * width
    patches = tokens * int(np.prod(spec.patch_shape)) * width
    return float(2 * (config["depth"] * layer + patches) / 1e9)


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])
