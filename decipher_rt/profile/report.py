"""The report of a profile: one JSON object (``decipher-rt/profile/1``), and the same as a table for people."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decipher_rt import __version__
from decipher_rt.bundle import Bundle
from decipher_rt.clock import STAGES
from decipher_rt.engines import Engine
from decipher_rt.engines.base import SaysHowItLoaded
from decipher_rt.errors import DecipherError
from decipher_rt.machine import describe_machine, package_version
from decipher_rt.profile.cold import PARTS, ColdRun, environment
from decipher_rt.profile.measure import Run, Throughput, Warm
from decipher_rt.profile.peak import MachinePeak, copied_gb_s, encoder_gflop
from decipher_rt.profile.spread import RUNS_FOR, spread

SCHEMA = "decipher-rt/profile/1"
CPU_NOTE = "CPU is of all threads, and of the process that decodes compressed images"
PACKAGES = ("numpy", "pydicom", "nvidia-dali-cuda130", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def build_report(
    *,
    bundle: Bundle,
    encoder: Engine,
    warm: Warm,
    cold: Sequence[ColdRun],
    throughput: Throughput | None,
    peak: MachinePeak,
    load: Mapping[str, float],
    command: str,
) -> dict[str, Any]:
    """Put everything that was measured, and what it was measured on, into plain JSON types.

    Parameters
    ----------
    bundle : Bundle
    encoder : Engine
        That the session ran.
    warm, cold, throughput, peak : what was measured
    load : mapping
        Milliseconds of ``bundle open`` and ``engine load`` in this process.
    command : str
        As it was typed.
    """
    result = warm.result
    stages = {stage: _stage(stage, warm.runs) for stage in STAGES}
    total = spread([run.total_ms for run in warm.runs]) | {"cpu_p50_ms": _median([run.cpu_ms for run in warm.runs])}
    sums = [sum(span.wall_ms for span in run.spans) for run in warm.runs]
    gflop = encoder_gflop(bundle.manifest.encoder, bundle.manifest.preprocessing, result.tokens["kept"])
    shares = _shares(stages, warm.volume_bytes, gflop, peak, result.engine["device"] == "cpu")
    machine = dataclasses.asdict(describe_machine())
    machine |= {key: list(machine[key]) for key in ("cpu_features", "gpus")}
    return {
        "schema": SCHEMA,
        "series": {key: result.series[key] for key in ("path", "description", "files", "shape_ras")}
        | {"voxel_mib": round(warm.volume_bytes / 2**20, 2)},
        "bundle": dict(result.bundle),
        "engine": dict(result.engine) | {"threads": encoder.threads},
        "encoder_load": _encoder_load(encoder),
        "tokens": dict(result.tokens),
        "heads": list(result.heads),
        "stages": stages,
        "total": total,
        "parts_over_total": round(_median([part / run.total_ms for part, run in zip(sums, warm.runs, strict=True)]), 5),
        "warm_up": {"total_ms": [round(run.total_ms, 3) for run in warm.warm_up], **_rounded(load)},
        "cold": _cold(cold),
        "throughput": _throughput(throughput),
        "peak_mib": round(warm.peak_mib, 1),
        "memory": {
            "loaded_mib": round(warm.loaded_mib, 1),
            "growth_after_warm_up_mib": round(warm.growth_mib, 2),
            **dataclasses.asdict(warm.allocations),
        },
        "machine_peak": _rounded(dataclasses.asdict(peak)),
        "share_of_peak": shares,
        "machine": machine,
        "versions": {"decipher-rt": __version__} | {name: v for name in PACKAGES if (v := package_version(name))},
        "environment": environment(),
        "command": command,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def read_report(path: Path) -> dict[str, Any]:
    """Read a report that ``--json`` printed.

    Raises
    ------
    DecipherError
        Where the file is not one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON"
        raise DecipherError(f"{path}: {reason}; give what 'decipher-rt profile SERIES --json' printed") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise DecipherError(f"{path}: schema is {found!r}, expected {SCHEMA!r}; make it with 'decipher-rt profile'")
    return document


def text_report(report: Mapping[str, Any]) -> str:
    """Return the report as lines for a person."""
    total, runs = report["total"], report["total"]["runs"]
    engine, tokens, memory, machine = (report[key] for key in ("engine", "tokens", "memory", "machine"))
    lines = [
        f"{report['series']['path']}: {' x '.join(map(str, report['series']['shape_ras']))} voxels, "
        f"{report['series']['files']} files; {tokens['kept']} of {tokens['total']} tokens",
        f"{report['bundle']['name']} {report['bundle']['version']} on {engine['name']} {engine['precision']} "
        f"({engine['device']}, {engine['threads']} threads); heads: {', '.join(report['heads']) or 'none'}",
        *([f"  fallback: {engine['fallback']}"] if "fallback" in engine else []),
        "",
        f"warm, one series at a time, {runs} runs (ms){percentile_note(runs)}",
        f"  {'stage':<14}{'p50':>9}{'p95':>9}{'p99':>9}{'min':>9}{'max':>9}{'CPU':>9}{'share':>8}",
    ]
    for stage, row in report["stages"].items():
        lines.append(_row(stage, row, row["share"]))
    lines.append(_row("total", total, 1.0))
    lines.append(f"  the parts sum to {report['parts_over_total']:.2%} of the total, which is measured on its own")
    lines.append(f"  {CPU_NOTE}")
    lines += _load_lines(report)
    lines += _cold_lines(report["cold"])
    if throughput := report["throughput"]:
        lines += [
            "",
            f"saturated, {throughput['series']} series in one call (not comparable with the latencies above)",
            f"  {throughput['series_per_s']:.2f} series/s, cores busy {throughput['busy']:.0%}, "
            f"peak {throughput['peak_mib']:.0f} MiB",
        ]
    lines += [
        "",
        f"memory, the decoder's process included: peak {report['peak_mib']:.0f} MiB, "
        f"{memory['loaded_mib']:.0f} after loading, "
        f"{memory['growth_after_warm_up_mib']:.1f} more after {runs} warm runs",
        f"  a warm run holds up to {memory['python_peak_mib']:.1f} MiB of Python and numpy memory, keeps "
        f"{memory['python_growth_kib']:.1f} KiB and touches {memory['page_faults']} new pages, all in this process",
        f"CPU: {report['machine_peak']['gemm_gflops']:.0f} GFLOP/s (fp32 matrix product), "
        f"{report['machine_peak']['copy_gb_s']:.1f} GB/s (copy)",
        *(f"  {stage}: {text}" for stage, text in share_texts(report).items()),
        f"  {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['system']}",
        "  " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        f"  {report['command']}",
    ]
    return "\n".join(lines)


def share_texts(report: Mapping[str, Any]) -> dict[str, str]:
    """Say for each stage what share of the CPU's measured peak it reaches."""
    units = {"gemm": "GFLOP/s, {:.0%} of the matrix product", "copy": "GB/s read and written, {:.0%} of the copy"}
    return {
        stage: f"{row['rate']:.3g} {units[row['of']].format(row['share'])}"
        for stage, row in report["share_of_peak"].items()
    }


def percentile_note(runs: int) -> str:
    """Say which percentiles are no more than the slowest run; empty where there are enough runs for all."""
    few = [name.removesuffix("_ms") for name, needed in RUNS_FOR.items() if runs < needed]
    return f"; of so few, {' and '.join(few)} are the slowest" if few else ""


def _stage(stage: str, runs: Sequence[Run]) -> dict[str, Any]:
    walls, cpus = [], []
    for run in runs:
        spans = [span for span in run.spans if span.stage == stage]
        walls.append(sum(span.wall_ms for span in spans))
        cpus.append(sum(span.cpu_ms for span in spans))
    shares = [wall / run.total_ms for wall, run in zip(walls, runs, strict=True)]
    return spread(walls) | {"cpu_p50_ms": _median(cpus), "share": round(_median(shares), 5)}


def _shares(
    stages: Mapping[str, Mapping[str, Any]], volume_bytes: int, gflop: float | None, peak: MachinePeak, on_cpu: bool
) -> dict[str, Any]:
    """Compare with the CPU's peak: arithmetic where a stage is arithmetic, and else a copy of the voxels.

    Of an encoder on a GPU, and of preprocessing, which may run there with it, the CPU's peak says nothing.
    """
    shares = {}
    for stage in ("read", "preprocess") if on_cpu else ("read",):
        if stages[stage]["p50_ms"]:
            rate = copied_gb_s(volume_bytes, stages[stage]["p50_ms"] / 1e3)
            shares[stage] = {"of": "copy", "rate": round(rate, 3), "share": round(rate / peak.copy_gb_s, 4)}
    if gflop is not None and on_cpu:
        rate = gflop / stages["encode"]["p50_ms"] * 1e3
        shares["encode"] = {"of": "gemm", "rate": round(rate, 1), "share": round(rate / peak.gemm_gflops, 4)}
    return shares


def _cold(runs: Sequence[ColdRun]) -> dict[str, Any] | None:
    if not runs:
        return None
    return {
        "stages": {part: spread([run.parts_ms[part] for run in runs]) for part in PARTS},
        "total": spread([run.total_ms for run in runs]),
        "read_in_all": spread([run.read_ms for run in runs]),
        "cpu": spread([run.cpu_ms for run in runs]),
        "peak_mib": round(max(run.peak_mib for run in runs), 1),
        "runs": len(runs),
    }


def _throughput(measured: Throughput | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    return {
        "series": measured.series,
        "wall_s": round(measured.wall_s, 4),
        "series_per_s": round(measured.series / measured.wall_s, 4),
        "busy": round(measured.busy, 4),
        "peak_mib": round(measured.peak_mib, 1),
    }


def _encoder_load(encoder: Engine) -> dict[str, Any] | None:
    if not isinstance(encoder, SaysHowItLoaded):
        return None
    return {
        "load_ms": round(encoder.load_ms, 2),
        "compiled": encoder.compiled,
        "not_recorded": encoder.not_recorded,
    }


def _load_lines(report: Mapping[str, Any]) -> list[str]:
    """Say how an engine of a GPU was loaded: where it compiled, this time is no measure of the next."""
    load = report.get("encoder_load")  # profiles of earlier versions have none
    if load is None:
        return []
    which = "compiled for this card, the first load here" if load["compiled"] else "nothing to compile"
    graphs = f"no CUDA graph: {load['not_recorded']}" if load["not_recorded"] else "one CUDA graph a token bucket"
    return ["", f"encoder loaded in {load['load_ms']:.0f} ms ({which}); {graphs}"]


def _cold_lines(cold: Mapping[str, Any] | None) -> list[str]:
    if cold is None:
        return []
    lines = [
        "",
        f"cold, a new process each, page cache as it is, {cold['runs']} runs (ms){percentile_note(cold['runs'])}",
    ]
    rows = [*cold["stages"].items(), ("total", cold["total"])]
    for part, row in rows:
        lines.append(f"  {part:<14}{row['p50_ms']:>9.1f}   from {row['min_ms']:.1f} to {row['max_ms']:.1f}")
    lines.append(
        f"  reading took {cold['read_in_all']['p50_ms']:.1f} in all, beside the loading; "
        f"CPU {cold['cpu']['p50_ms']:.0f}; peak {cold['peak_mib']:.0f} MiB"
    )
    return lines


def _row(name: str, row: Mapping[str, Any], share: float) -> str:
    columns = "".join(f"{row[key]:>9.2f}" for key in ("p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "cpu_p50_ms"))
    return f"  {name:<14}{columns}{share:>8.1%}"


def _median(values: Sequence[float]) -> float:
    return float(spread(values)["p50_ms"])


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
