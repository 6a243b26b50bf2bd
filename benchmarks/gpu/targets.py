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
    ours = [row for row in rows if row.method == attention.KERNEL and "N=512 d=64 float16" in row.case]
    for row in ours:
        if row.tflops is not None:
            return Target(claim, asked, f"{row.tflops:.0f} TFLOP/s", row.tflops >= ATTENTION_TFLOPS)
    return _unmeasured(claim, asked, ours)


def _against_sdpa(rows: list[Row]) -> list[Target]:
    targets, asked = [], f"at most {OF_BEST_SDPA} times the best SDPA"
    for case, methods in _by_case(rows).items():
        claim = f"attention, {case}"
        times = _times(methods)
        ours = times.pop(attention.KERNEL, None)
        if ours is None:
            targets.append(_unmeasured(claim, asked, [r for r in methods if r.method == attention.KERNEL]))
        elif not times:
            targets.append(_unmeasured(claim, asked, [r for r in methods if r.method != attention.KERNEL]))
        else:
            best = min(times, key=times.__getitem__)
            ratio = ours / times[best]
            targets.append(Target(claim, asked, f"{ratio:.2f} times {best}", ratio <= OF_BEST_SDPA))
    return targets


def _against_patch_baselines(rows: list[Row]) -> list[Target]:
    targets = []
    for case, methods in _by_case(rows).items():
        times = _times(methods)
        for method, least in ((patch_embed3d.CONV, CONV_SPEEDUP), (patch_embed3d.GEMM, 1.0)):
            claim, asked = f"patch embedding, {case}", f"at least {least:g} times as fast as {method}"
            missing = [r for r in methods if r.method in (patch_embed3d.KERNEL, method) and r.timing is None]
            if patch_embed3d.KERNEL not in times or method not in times:
                targets.append(_unmeasured(claim, asked, missing))
                continue
            speedup = times[method] / times[patch_embed3d.KERNEL]
            targets.append(Target(claim, asked, f"{speedup:.1f} times", speedup >= least))
    return targets


def _against_floor(rows: list[Row], floors_ms: dict[str, float]) -> list[Target]:
    targets, measured = [], _by_case(rows)
    for case, floor in floors_ms.items():
        claim, asked = f"encoder, {case}", f"at most {OF_FLOOR:g} times its floor"
        times = _times(measured.get(case, []))
        if not times:
            targets.append(_unmeasured(claim, asked, measured.get(case, [])))
            continue
        best = min(times, key=times.__getitem__)
        ratio = times[best] / floor
        said = f"{ratio:.2f} times ({best}, {times[best]:.2f} ms)"
        targets.append(Target(claim, asked, said, ratio <= OF_FLOOR))
    return targets


def _unmeasured(claim: str, asked: str, rows: list[Row]) -> Target:
    """Return a target that could not be judged, with the first reason that there is."""
    why = next((row.not_run for row in rows if row.not_run), "not part of this run")
    return Target(claim, asked, f"not measured: {why}", None)


def _by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return cases


def _times(rows: Iterable[Row]) -> dict[str, float]:
    """Return the median in ms by method, of what ran."""
    return {row.method: row.timing.median_ms for row in rows if row.timing is not None}
