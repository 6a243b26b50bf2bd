"""The page of a profile, and that of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from decipher_rt.profile.compare import changed_conditions, compare_reports
from decipher_rt.profile.page import definitions, figures, page, ratios, round_up, strips, table, waterfall
from decipher_rt.profile.report import CPU_NOTE, percentile_note, share_texts

COLUMNS = ("p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "cpu_p50_ms")
HEAD = ("stage", "p50", "p95", "p99", "min", "max", "CPU", "share")


def html_report(report: Mapping[str, Any]) -> str:
    """Return one page: waterfalls, distributions, numbers and where they come from."""
    total, cold, engine = report["total"], report["cold"], report["engine"]
    name = report["series"]["description"] or report["series"]["path"]
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{escape(subtitle(report))}</p>',
        *([f'<div class="warn">fallback: {escape(engine["fallback"])}</div>'] if "fallback" in engine else []),
        figures(_figures(report)),
        "<h2>Warm</h2>",
        f'<p class="soft">One series at a time, {total["runs"]} runs: idle latency. Medians of the stages.</p>',
        _warm_waterfall(report, round_up(total["p50_ms"])),
    ]
    if cold:
        parts += [
            "<h2>Cold</h2>",
            f'<p class="soft">A new process for each of {cold["runs"]} runs, page cache as it is. Medians.</p>',
            _cold_waterfall(cold, _cold_scale(cold)),
        ]
    if report["throughput"]:
        throughput = report["throughput"]
        parts += [
            "<h2>Saturated</h2>",
            '<p class="soft">Many series in one call, so that their stages overlap; not comparable with latency.</p>',
            definitions(
                [
                    ("series", f"{throughput['series']} in {throughput['wall_s']:.2f} s"),
                    ("rate", f"{throughput['series_per_s']:.2f} series/s"),
                    ("cores busy", f"{throughput['busy']:.0%}"),
                    ("peak memory", f"{throughput['peak_mib']:.0f} MiB"),
                ]
            ),
        ]
    runs = {stage: row["runs_ms"] for stage, row in report["stages"].items() if row["p50_ms"] >= 0.01}
    rows = [*report["stages"].items(), ("total", total | {"share": 1.0})]
    parts += [
        "<h2>Distributions</h2>",
        strips(
            runs | {"total": total["runs_ms"]},
            "Every warm run is a dot, each stage on its own axis; the line is the median.",
        ),
        "<h2>Numbers</h2>",
        table(HEAD, [(stage, *(f"{row[c]:.2f}" for c in COLUMNS), f"{row['share']:.1%}") for stage, row in rows]),
        f"<p><small class=soft>Milliseconds{escape(percentile_note(total['runs']))}. {CPU_NOTE}. The parts "
        f"sum to {report['parts_over_total']:.2%} of the total, which is measured on its own.</small></p>",
        "<h2>Machine and memory</h2>",
        definitions(_machine(report)),
        "<h2>Provenance</h2>",
        definitions(_provenance(report, engine), code=("command", "bundle", "encoder")),
    ]
    return page(f"decipher-rt profile: {name}", parts)


def html_comparison(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Return one page for two reports, A and B."""
    scale = round_up(max(a["total"]["p50_ms"], b["total"]["p50_ms"]))
    differences = compare_reports(a, b)
    warnings = [
        f"{name} is not the same: A {first}, B {second}" for name, (first, second) in changed_conditions(a, b).items()
    ]
    parts = [
        "<h1>A and B</h1>",
        definitions(
            [("A", f"{names[0]} ({a['date']}): {subtitle(a)}"), ("B", f"{names[1]} ({b['date']}): {subtitle(b)}")]
        ),
        *(f'<div class="warn">{escape(text)}</div>' for text in warnings),
        "<h2>Warm, A</h2>",
        _warm_waterfall(a, scale),
        "<h2>Warm, B</h2>",
        _warm_waterfall(b, scale),
    ]
    if a["cold"] and b["cold"]:
        cold_scale = max(_cold_scale(a["cold"]), _cold_scale(b["cold"]))
        parts += ["<h2>Cold, A</h2>", _cold_waterfall(a["cold"], cold_scale)]
        parts += ["<h2>Cold, B</h2>", _cold_waterfall(b["cold"], cold_scale)]
    for section in dict.fromkeys(row.section for row in differences):
        rows = [row for row in differences if row.section == section]
        parts += [
            f"<h2>What changed, {section}</h2>",
            ratios(
                [
                    (r.stage, r.ratio, r.low, r.high, f"{r.ratio:.2f} <small class=soft>{r.verdict}</small>")
                    for r in rows
                ],
                "Median of A over median of B with its 95 % interval (bootstrap). Right of the middle B is faster.",
            ),
            table(
                ("stage", "A, ms", "B, ms", "A / B", "95 % interval"),
                [
                    (r.stage, f"{r.a_ms:.2f}", f"{r.b_ms:.2f}", f"{r.ratio:.2f}", f"{r.low:.2f} to {r.high:.2f}")
                    for r in rows
                ],
            ),
        ]
    for letter, report in (("A", a), ("B", b)):
        parts += [f"<h2>Provenance of {letter}</h2>"]
        parts += [definitions(_provenance(report, report["engine"]), code=("command", "bundle", "encoder"))]
    return page("decipher-rt profile: A and B", parts)


def subtitle(report: Mapping[str, Any]) -> str:
    """Say in a line what was run on what."""
    engine, tokens, series = report["engine"], report["tokens"], report["series"]
    shape = " x ".join(map(str, series["shape_ras"]))
    return (
        f"{shape} voxels in {series['files']} files; {report['bundle']['name']} {report['bundle']['version']}, "
        f"{engine['name']} {engine['precision']} on {engine['threads']} threads, "
        f"{tokens['kept']} of {tokens['total']} tokens"
    )


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(f"{report['total']['p50_ms']:.0f} ms", "warm, median")]
    if report["cold"]:
        found.append((f"{report['cold']['total']['p50_ms']:.0f} ms", "cold, median"))
    if report["throughput"]:
        found.append((f"{report['throughput']['series_per_s']:.2f} /s", "series, saturated"))
    return [
        *found,
        (f"{report['peak_mib']:.0f} MiB", "peak memory"),
        (f"{1 - report['stages']['encode']['share']:.0%}", "of warm time outside the encoder"),
    ]


def _warm_waterfall(report: Mapping[str, Any], scale: float) -> str:
    parts = {stage: row["p50_ms"] for stage, row in report["stages"].items()}
    return waterfall(parts, scale, f"Total, measured on its own: {report['total']['p50_ms']:.1f} ms.", {})


def _cold_waterfall(cold: Mapping[str, Any], scale: float) -> str:
    parts = {part: row["p50_ms"] for part, row in cold["stages"].items()}
    start = parts["process start"] + parts["imports"]
    caption = (
        f"Total: {cold['total']['p50_ms']:.0f} ms. Hatched: reading as a whole, which runs beside the loading; "
        "its solid part is what was left once the bundle was loaded."
    )
    return waterfall(parts, scale, caption, {"read": (start, cold["read_in_all"]["p50_ms"])})


def _cold_scale(cold: Mapping[str, Any]) -> float:
    # Medians of parts need not sum to the median of the totals.
    return round_up(max(cold["total"]["p50_ms"], sum(row["p50_ms"] for row in cold["stages"].values())))


def _machine(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine, memory = report["machine"], report["memory"]
    return [
        ("processor", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"),
        ("features", ", ".join(machine["cpu_features"]) or "none of note"),
        *(("GPU", f"{gpu['name']}, {gpu['memory_mib']} MiB") for gpu in machine["gpus"]),
        (
            "CPU's measured peak",
            f"{report['machine_peak']['gemm_gflops']:.0f} GFLOP/s (fp32 matrix product), "
            f"{report['machine_peak']['copy_gb_s']:.1f} GB/s (copy), in this run",
        ),
        *share_texts(report).items(),
        (
            "memory",
            f"{memory['loaded_mib']:.0f} MiB when loaded, {report['peak_mib']:.0f} at the peak, "
            f"{memory['growth_after_warm_up_mib']:.1f} more over the warm runs; the decoder's process included",
        ),
        (
            "a warm run",
            f"holds up to {memory['python_peak_mib']:.1f} MiB of Python and numpy memory, keeps "
            f"{memory['python_growth_kib']:.1f} KiB, touches {memory['page_faults']} new pages, all in this process",
        ),
    ]


def _provenance(report: Mapping[str, Any], engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("command", report["command"]),
        ("date", report["date"]),
        ("bundle", f"{report['bundle']['name']} {report['bundle']['version']} sha256 {report['bundle']['sha256']}"),
        ("encoder", f"sha256 {engine.get('sha256', '?')}"),
        ("system", report["machine"]["system"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        ("environment", ", ".join(f"{k}={v}" for k, v in report["environment"].items()) or "nothing that matters"),
    ]
