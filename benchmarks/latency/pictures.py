"""Bring the committed figures into docs/latency.md: tables, the waterfall from (a) to (e), growth.

python benchmarks/latency/pictures.py      reads benchmarks/results, writes docs/latency.md and docs/images
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from latency.cache import REPOSITORY
from pages import rewrite

PAGE = REPOSITORY / "docs" / "latency.md"
RESULTS, IMAGES = REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "images"
# Okabe and Ito's palette, as in the profiler's page.
STAGES = {"read": "#0072b2", "preprocess": "#56b4e9", "encode": "#d55e00", "rest": "#cc79a7"}
PEER, OURS = "#8a8f98", "#30343b"


def main() -> None:
    """Write tables and pictures."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "latency"}
    IMAGES.mkdir(parents=True, exist_ok=True)
    end_to_end, larger = reports()
    waterfall(end_to_end)
    growth(larger)
    rewrite(PAGE, tables(end_to_end, larger))


def reports() -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what ``end_to_end.py`` and ``growth.py`` measured."""
    end_to_end, larger = ((RESULTS / f"{name}.json").read_text(encoding="utf-8") for name in ("end_to_end", "growth"))
    return json.loads(end_to_end), json.loads(larger)


def tables(end_to_end: dict[str, Any], larger: dict[str, Any]) -> dict[str, list[str]]:
    """Return each table of the page by its name there."""
    return {
        "end-to-end": end_to_end_table(end_to_end),
        "targets": targets_table(end_to_end),
        "stages": stages_table(end_to_end),
        "growth": growth_table(larger),
        "sizes": sizes_table(larger),
        "measured": [measured_on(end_to_end, larger)],
    }


def end_to_end_table(report: dict[str, Any]) -> list[str]:
    """Return one row a step: warm, cold, memory, each with its ratio to (a)."""
    lines = [
        "| | | warm, s | as fast as (a) | cold, s | as fast as (a) | peak, MiB | of (a) |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, what in report["steps"].items():
        warm, cold, peak = (report[key].get(name) for key in ("warm", "cold", "peak_mib"))
        cells = [f"({name})", what, _timed(warm), _ratio(warm)]
        cells += (
            [_timed(cold), _ratio(cold), f"{peak['median']:.0f}", f"{1 / peak['ratio_to_a']:.0%}"]
            if cold
            else ["-"] * 4
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def targets_table(report: dict[str, Any]) -> list[str]:
    """Return one row a target."""
    lines = ["| target | wanted | measured | |", "|---|--:|--:|---|"]
    for target in report["targets"]:
        verdict = "holds" if target["holds"] else "**missed**"
        lines.append(f"| {target['target']} | {target['wanted']} | {target['measured']} | {verdict} |")
    return lines


def stages_table(report: dict[str, Any]) -> list[str]:
    """Return one row for each way of decipher-rt."""
    stages = ("read", "preprocess", "encode", "heads", "write", "total")
    lines = [f"| ms, medians | {' | '.join(stages)} | outside the encoder |", "|---" + "|--:" * (len(stages) + 1) + "|"]
    for name, row in report["stages_ms"].items():
        outside = f"{row['total'] - row['encode']:.0f} ({1 - row['encode'] / row['total']:.0%})"
        lines.append(
            f"| ({name}) {report['steps'][name]} | {' | '.join(f'{row[s]:.1f}' for s in stages)} | {outside} |"
        )
    return lines


def growth_table(report: dict[str, Any]) -> list[str]:
    """Return one row for each number of series."""
    lines = ["| series in one call | total, s | series/s | cores busy | peak, MiB |", "|--:|--:|--:|--:|--:|"]
    for row in report["series_in_one_call"]:
        cells = [f"{row['series']}", f"{row['wall_s']:.2f}", f"{row['series_per_s']:.2f}", f"{row['busy']:.0%}"]
        lines.append(f"| {' | '.join(cells)} | {row['peak_mib']:.0f} |")
    return lines


def sizes_table(report: dict[str, Any]) -> list[str]:
    """Return one row for each size."""
    lines = [
        "| slices x rows x columns | total, ms | read | preprocess | encode | tokens |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in report["sizes"]:
        stages = " | ".join(f"{row['stages_ms'][stage]:.1f}" for stage in ("read", "preprocess", "encode"))
        lines.append(f"| {row['shape']} | {row['total_ms']:.1f} | {stages} | {row['tokens']} |")
    return lines


def measured_on(*reports: dict[str, Any]) -> str:
    """Say on what, with what and under which load."""
    first, machine = reports[0], reports[0]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    loads = " and ".join(f"{report['load_average']}" for report in reports)
    return (
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['cpu_features'])}), "
        f"{machine['memory_gib']} GiB, {machine['system']}; {versions}; {first['rounds']} warm and "
        f"{first['cold_rounds']} cold rounds. Load average at the end of the two runs: {loads} (two cores: what is "
        "above 2 is other work on the machine; how it bore on each way was not measured)."
    )


def _timed(row: dict[str, Any]) -> str:
    return f"{row['median']:.2f} ({row['min']:.2f} to {row['max']:.2f})"


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio_to_a']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"


def waterfall(report: dict[str, Any]) -> None:
    """Draw one bar a step, warm and cold; those of decipher-rt by stage."""
    from matplotlib import pyplot as plt

    names = [name for name in report["steps"] if name in report["cold"]]
    figure, (warm, cold) = plt.subplots(1, 2, figsize=(12, 0.46 * len(names) + 1.5), sharey=True, width_ratios=(3, 2))
    rows = list(range(len(names)))[::-1]
    for row, name in zip(rows, names, strict=True):
        figures, stages = report["warm"][name], report["stages_ms"].get(name)
        if stages:
            parts = {stage: stages[stage] / 1e3 for stage in ("read", "preprocess", "encode")}
            parts["rest"] = max(figures["median"] - sum(parts.values()), 0)
            left = 0.0
            for stage, value in parts.items():
                warm.barh(row, value, left=left, color=STAGES[stage], height=0.62)
                left += value
        else:
            warm.barh(row, figures["median"], color=PEER, height=0.62)
        for axes, key in ((warm, "warm"), (cold, "cold")):
            found = report[key][name]
            if axes is cold:
                axes.barh(row, found["median"], color=OURS if stages else PEER, height=0.62)
            axes.plot([found["min"], found["max"]], [row, row], color="black", linewidth=1)
            text = f" {found['median']:.2f} s" + (f", {found['ratio_to_a']:.1f}x" if name != "a" else "")
            axes.text(found["max"], row, text, va="center", fontsize=9)
    warm.set_yticks(rows, [f"{report['steps'][name]}  ({name})" for name in names])
    for axes, title, key in ((warm, "warm", "warm"), (cold, "cold: a new process", "cold")):
        axes.set_title(f"{title}, seconds", loc="left", fontsize=10)
        axes.set_xlim(0, 1.28 * max(report[key][name]["max"] for name in names))
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in STAGES.values()]
    warm.legend(handles, STAGES, loc="lower right", frameon=False, ncols=4, fontsize=9, title="stages of decipher-rt")
    figure.tight_layout()
    figure.savefig(IMAGES / "latency-waterfall.svg", metadata={"Date": None})


def growth(report: dict[str, Any]) -> None:
    """Draw time and memory over the number of series, and stages over the size of one."""
    from matplotlib import pyplot as plt

    figure, (many, memory, size) = plt.subplots(1, 3, figsize=(12, 3.4), width_ratios=(1, 1, 1.3))
    rows = report["series_in_one_call"]
    counts = [row["series"] for row in rows]
    many.plot(counts, [row["wall_s"] for row in rows], "o-", color=STAGES["encode"])
    first = rows[0]["wall_s"]
    many.plot(counts, [first * count for count in counts], "--", color=PEER, label="one after the other")
    many.set_xscale("log", base=2)
    many.set_yscale("log", base=2)
    many.set_xticks(counts, map(str, counts))
    ticks = [first * 2**n for n in range(0, len(counts), 2)]
    many.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    many.minorticks_off()
    many.set_title("series in one call: seconds", loc="left", fontsize=10)
    many.legend(frameon=False)
    memory.plot(counts, [row["peak_mib"] for row in rows], "o-", color=STAGES["read"])
    memory.set_xscale("log", base=2)
    memory.set_xticks(counts, map(str, counts))
    memory.minorticks_off()
    memory.set_ylim(0)
    memory.set_title("series in one call: peak MiB", loc="left", fontsize=10)
    shapes = [row["shape"] for row in report["sizes"]]
    bottom = [0.0] * len(shapes)
    for stage in ("read", "preprocess", "encode"):
        values = [row["stages_ms"][stage] for row in report["sizes"]]
        size.bar(shapes, values, bottom=bottom, color=STAGES[stage], label=stage, width=0.6)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    size.tick_params(axis="x", labelrotation=20)
    size.set_title("size of one series: ms by stage", loc="left", fontsize=10)
    size.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(IMAGES / "latency-growth.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
