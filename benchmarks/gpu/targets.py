"""The claims that the kernels are held to on an H100, judged on the rows of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.gpu import attention, patch_embed3d
from benchmarks.gpu.measure import Row

ATTENTION_TFLOPS = 340.0
"""What the authors of FlashAttention-3 (arXiv 2407.08608) measured for Triton at this size on an H100."""
OF_BEST_SDPA = 1.05
CONV_SPEEDUP = 11.0
OF_FLOOR = 2.0


@dataclass(frozen=True)
class Target:
    """One claim: what was asked, what was measured, whether it holds; ``met`` is None where it could not be judged."""

    claim: str
    asked: str
    measured: str
    met: bool | None


def judge(
    attention_rows: list[Row], patch_rows: list[Row], encoder_rows: list[Row], floors_ms: dict[str, float]
) -> list[Target]:
    """Judge every target.

    Parameters
    ----------
    attention_rows, patch_rows, encoder_rows : list of Row
    floors_ms : dict
        Least time of each encoder case.
    """
    return [
        _throughput(attention_rows),
        *_against_sdpa(attention_rows),
        *_against_patch_baselines(patch_rows),
        *_against_floor(encoder_rows, floors_ms),
    ]


def _throughput(rows: list[Row]) -> Target:
    claim, asked = "attention, N = 512, d = 64, fp16, large batch", f"at least {ATTENTION_TFLOPS:.0f} TFLOP/s (H100)"
    for row in rows:
        if row.method == attention.KERNEL and "N=512 d=64 float16" in row.case and row.tflops is not None:
            return Target(claim, asked, f"{row.tflops:.0f} TFLOP/s", row.tflops >= ATTENTION_TFLOPS)
    return Target(claim, asked, "not measured", None)


def _against_sdpa(rows: list[Row]) -> list[Target]:
    targets = []
    for case, times in _times(rows).items():
        ours = times.pop(attention.KERNEL, None)
        if ours is None or not times:
            continue
        best = min(times, key=lambda method: times[method])
        ratio = ours / times[best]
        measured = f"{ratio:.2f} times {best}"
        targets.append(
            Target(f"attention, {case}", f"at most {OF_BEST_SDPA} times the best SDPA", measured, ratio <= OF_BEST_SDPA)
        )
    return targets


def _against_patch_baselines(rows: list[Row]) -> list[Target]:
    targets = []
    for case, times in _times(rows).items():
        ours = times.get(patch_embed3d.KERNEL)
        for method, asked in ((patch_embed3d.CONV, CONV_SPEEDUP), (patch_embed3d.GEMM, 1.0)):
            if ours is not None and method in times:
                speedup = times[method] / ours
                wanted = f"at least {asked:g} times as fast as {method}"
                targets.append(Target(f"patch embedding, {case}", wanted, f"{speedup:.1f} times", speedup >= asked))
    return targets


def _against_floor(rows: list[Row], floors_ms: dict[str, float]) -> list[Target]:
    targets = []
    for case, times in _times(rows).items():
        if case in floors_ms and times:
            best = min(times, key=lambda method: times[method])
            ratio = times[best] / floors_ms[case]
            measured = f"{ratio:.2f} times ({best}, {times[best]:.2f} ms)"
            targets.append(
                Target(f"encoder, {case}", f"at most {OF_FLOOR:g} times its floor", measured, ratio <= OF_FLOOR)
            )
    return targets


def _times(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Return the median in ms by case and method, of what ran."""
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.timing is not None:
            times.setdefault(row.case, {})[row.method] = row.timing.median_ms
    return times
