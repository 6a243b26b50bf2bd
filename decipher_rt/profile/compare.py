"""Two reports beside each other: what became faster or slower, and whether the runs bear it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from decipher_rt.profile.spread import ratio_of_medians

# A bootstrap of fewer runs than this gives intervals that are far too narrow.
FEWEST_RUNS = 5
# What two runs must share to be comparable; where they differ, the comparison says so.
CONDITIONS: dict[str, Callable[[Mapping[str, Any]], object]] = {
    "series": lambda r: (r["series"]["description"], tuple(r["series"]["shape_ras"])),
    "processor": lambda r: r["machine"]["processor"],
    "cores": lambda r: r["machine"]["cores"],
    "memory (GiB)": lambda r: r["machine"]["memory_gib"],
    "processor features": lambda r: ", ".join(r["machine"]["cpu_features"]),
    "GPUs": lambda r: ", ".join(gpu["name"] for gpu in r["machine"]["gpus"]) or "none",
    "system": lambda r: r["machine"]["system"],
    "engine": lambda r: r["engine"]["name"],
    "device": lambda r: r["engine"]["device"],
    "precision": lambda r: r["engine"]["precision"],
    "threads": lambda r: r["engine"]["threads"],
    "tokens": lambda r: r["tokens"]["kept"],
    "heads": lambda r: r.get("heads"),  # earlier reports do not say
    "bundle": lambda r: r["bundle"]["sha256"][:12],
}
# What a report has by name, package or variable, and what it is where a name is missing.
NAMED_CONDITIONS = {"versions": "not installed", "environment": "not set"}


@dataclass(frozen=True)
class Difference:
    """One stage in two reports.

    Attributes
    ----------
    section : "warm" or "cold"
    stage : str
    a_ms, b_ms : medians
    ratio, low, high : of a to b, so that 2 means that b is twice as fast; with its 95 % interval by bootstrap
    runs : of the report that has fewer
    """

    section: str
    stage: str
    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float
    runs: int

    @property
    def verdict(self) -> str:
        """Say whether B is faster or slower, or, where the interval holds 1, that no difference is shown."""
        if self.runs < FEWEST_RUNS:
            return "too few runs to say"
        if self.low > 1:
            return "B is faster"
        return "B is slower" if self.high < 1 else "no difference shown"


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Compare the total and every stage that takes time in either report, warm, and cold where both have it."""
    differences = _section("warm", a, b)
    if a["cold"] and b["cold"]:
        differences += _section("cold", a["cold"], b["cold"])
    return differences


def changed_conditions(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what the two were measured under that is not the same."""
    found = {name: (str(of(a)), str(of(b))) for name, of in CONDITIONS.items()}
    for key, missing in NAMED_CONDITIONS.items():
        for name in {**a[key], **b[key]}:
            found[name] = a[key].get(name, missing), b[key].get(name, missing)
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def text_comparison(a: Mapping[str, Any], b: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Return the comparison as lines for a person."""
    lines = [f"A {names[0]}  {a['date']}", f"B {names[1]}  {b['date']}"]
    for name, (first, second) in changed_conditions(a, b).items():
        lines.append(f"  not the same {name}: A {first}, B {second}")
    section = ""
    for row in compare_reports(a, b):
        if row.section != section:
            section = row.section
            lines += ["", f"{section} (ms, medians)", f"  {'stage':<14}{'A':>9}{'B':>9}{'A / B':>8}   95 % interval"]
        lines.append(
            f"  {row.stage:<14}{row.a_ms:>9.2f}{row.b_ms:>9.2f}{row.ratio:>8.2f}   "
            f"{row.low:.2f} to {row.high:.2f}: {row.verdict}"
        )
    lines += ["", f"peak memory: A {a['peak_mib']:.0f} MiB, B {b['peak_mib']:.0f} MiB"]
    return "\n".join(lines)


def _section(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    rows = [(stage, a["stages"][stage], b["stages"][stage]) for stage in a["stages"] if stage in b["stages"]]
    rows.append(("total", a["total"], b["total"]))
    return [
        Difference(
            name,
            stage,
            first["p50_ms"],
            second["p50_ms"],
            *ratio_of_medians(first["runs_ms"], second["runs_ms"]),
            runs=min(first["runs"], second["runs"]),
        )
        for stage, first, second in rows
        if min(first["min_ms"], second["min_ms"]) > 0  # a stage that another one hid in some runs has no ratio
    ]
