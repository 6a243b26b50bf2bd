"""The evidence of one run as JSON and as Markdown tables."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.encoder import Agreement
from benchmarks.gpu.measure import Ceilings, Row
from benchmarks.gpu.numerics import Check
from benchmarks.gpu.targets import Target

SCHEMA = "decipher-rt/gpu-check/1"


@dataclass(frozen=True)
class Report:
    """Everything that one run found."""

    machine: Mapping[str, Any]
    command: str
    seconds: float
    ceilings: Ceilings
    numerics: Sequence[Check]
    sections: Mapping[str, Sequence[Row]]
    agreements: Sequence[Agreement]
    targets: Sequence[Target]


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write ``gpu-<card>.json`` and ``gpu-<card>.md``; each beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"gpu-{slug(str(report.machine['card']))}"
    paths = stem.with_suffix(".json"), stem.with_suffix(".md")
    document = {"schema": SCHEMA, **dataclasses.asdict(report)}
    document["numerics"] = [{**dataclasses.asdict(check), "passed": check.passed} for check in report.numerics]
    for path, text in zip(paths, (json.dumps(document, indent=1) + "\n", markdown(report)), strict=True):
        beside = path.with_name(path.name + ".part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    return paths


def slug(card: str) -> str:
    """Return a card's name as part of a file name: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def markdown(report: Report) -> str:
    """Return the tables for people."""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items() if key != "card")
    gemm = ", ".join(f"{dtype} {value:.0f} TFLOP/s" for dtype, value in report.ceilings.gemm_tflops.items())
    failed = [check for check in report.numerics if not check.passed]
    lines = [
        f"# {report.machine['card']}",
        "",
        f"`{report.command}`, {report.seconds:.0f} s; {machine}.",
        "",
        f"Ceilings of this run: GEMM {gemm}; copy {report.ceilings.copy_gb_s:.0f} GB/s, read and written.",
        "Times are medians with the 10th and 90th percentile; the L2 cache is emptied before each run.",
        "",
        f"Numerics against fp64: {len(report.numerics) - len(failed)} of {len(report.numerics)} within their bounds.",
    ]
    lines += [f"- FAILED {check.case}: error {check.error:.3g}, bound {check.bound:.3g}" for check in failed]
    asked = [[t.claim, t.asked, t.measured, {True: "yes", False: "**no**", None: "-"}[t.met]] for t in report.targets]
    lines += ["", "## Targets (stated for an H100)", "", *table(["claim", "asked", "measured", "met"], asked)]
    for name, rows in report.sections.items():
        header = ["case", "method", "ms", "p10 to p90", "TFLOP/s", "of GEMM", "GB/s", "of copy"]
        lines += ["", f"## {name}", "", *table(header, [cells(row) for row in rows if row.timing is not None])]
        lines += [f"- {row.case}, {row.method}: not run: {row.not_run}" for row in rows if row.timing is None]
    found = [[a.case, a.method, f"{a.embedding_cosine:.6f}", f"{a.patch_largest_error:.3g}"] for a in report.agreements]
    lines += ["", "## Encoder outputs against fp32", ""]
    lines += table(["case", "method", "cosine of the embedding", "largest error of a token"], found)
    return "\n".join(lines) + "\n"


def cells(row: Row) -> list[str]:
    """Return one timed row as text."""
    if row.timing is None:
        raise ValueError(f"{row.case}, {row.method}: did not run")
    timing = row.timing
    spread = f"{timing.low_ms:.3f} to {timing.high_ms:.3f}"
    rates = [
        number(row.tflops, "{:.1f}"),
        number(row.of_gemm, "{:.0%}"),
        number(row.gb_s, "{:.0f}"),
        number(row.of_copy, "{:.0%}"),
    ]
    return [row.case, row.method, f"{timing.median_ms:.3f}", spread, *rates]


def number(value: float | None, form: str) -> str:
    """Return a number as text, ``-`` where there is none."""
    return "-" if value is None else form.format(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table as lines; nothing where there are no rows."""
    if not rows:
        return []
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    first, *rest = ["| " + " | ".join(row) + " |" for row in escaped]
    return [first, "|" + " --- |" * len(header), *rest]
