"""Time what runs on a CUDA device: events around each run, the L2 cache emptied before it, median and spread."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

DEVICE = "cuda"
WARM_UP_RUNS = 3
LEAST_RUNS, MOST_RUNS = 7, 200
FLUSH_BYTES = 256 << 20
"""More than any card's L2; clearing it also gives the CPU time to launch what comes next."""


@dataclass(frozen=True)
class Timing:
    """Of ``runs`` runs: median, and the 10th and 90th percentile, in ms."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


@dataclass(frozen=True)
class Ceilings:
    """What a large GEMM and a large copy reach on this card in this process; bytes read and written both count."""

    gemm_tflops: dict[str, float]
    copy_gb_s: float


@dataclass(frozen=True)
class Row:
    """One measurement, or why there is none.

    Attributes
    ----------
    case, method : what was computed, and by what
    timing : None where it did not run
    tflops, gb_s : of the work the case needs, however the method goes about it
    of_gemm, of_copy : the same as a share of the ceilings
    not_run : the reason, in words
    """

    case: str
    method: str
    timing: Timing | None = None
    tflops: float | None = None
    gb_s: float | None = None
    of_gemm: float | None = None
    of_copy: float | None = None
    not_run: str = ""


class Deadline:
    """The end of the time that the whole check may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())


def measure(run: Callable[[], Any], budget_s: float = 0.3) -> Timing:
    """Run repeatedly for about ``budget_s`` seconds and return the times on the device."""
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=DEVICE)
    for _ in range(WARM_UP_RUNS):
        run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    flush.zero_()
    run()
    torch.cuda.synchronize()
    runs = int(budget_s / max(time.perf_counter() - begin, 1e-6))
    runs = min(max(runs, LEAST_RUNS), MOST_RUNS)
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return summarise([start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)])


def summarise(times_ms: list[float]) -> Timing:
    """Return median and spread; a single time is its own."""
    if len(times_ms) == 1:
        return Timing(times_ms[0], times_ms[0], times_ms[0], 1)
    tenths = statistics.quantiles(times_ms, n=10, method="inclusive")
    return Timing(statistics.median(times_ms), tenths[0], tenths[-1], len(times_ms))


def rate(row: Row, ceilings: Ceilings, flops: float, moved_bytes: float, dtype: str) -> Row:
    """Fill in the rates of a timed row from the work that its case needs."""
    if row.timing is None:
        return row
    seconds = row.timing.median_ms / 1e3
    tflops, gb_s = flops / seconds / 1e12, moved_bytes / seconds / 1e9
    return dataclasses.replace(
        row,
        tflops=tflops,
        gb_s=gb_s,
        of_gemm=tflops / ceilings.gemm_tflops[dtype],
        of_copy=gb_s / ceilings.copy_gb_s,
    )


def attempt(case: str, method: str, run: Callable[[], Any], deadline: Deadline, budget_s: float = 0.3) -> Row:
    """Measure one method, or say why it did not run: no time left, no memory, not supported on this card, broken."""
    if deadline.left() < budget_s:
        return Row(case, method, not_run="out of time")
    try:
        return Row(case, method, measure(run, budget_s))
    except torch.cuda.OutOfMemoryError:
        return Row(case, method, not_run="out of memory")
    except Exception as error:  # noqa: BLE001 (one failure, ours or a baseline's, must not lose the other evidence)
        return Row(case, method, not_run=reason(error))


def reason(error: Exception) -> str:
    """Return an exception as part of a line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:160]}"


def measure_ceilings(deadline: Deadline) -> Ceilings:
    """Measure 8192^3 matrix products and a copy of 1 GiB (less on a small card)."""
    n = 8192 if torch.cuda.mem_get_info()[0] > (3 << 30) else 4096
    gemm = {}
    for dtype in (torch.float16, torch.bfloat16):
        if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            continue
        a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        timing = measure(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), min(1.0, deadline.left()))
        gemm[str(dtype).removeprefix("torch.")] = 2 * n**3 / timing.median_ms / 1e9
    source = torch.empty(min(1 << 30, torch.cuda.mem_get_info()[0] // 4), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), 0.5)
    return Ceilings(gemm, 2 * source.numel() / timing.median_ms / 1e6)
