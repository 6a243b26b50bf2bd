"""Draw the committed figures: the waterfall from (a) to (e), and growth.

python benchmarks/latency/plots.py      reads benchmarks/results, writes docs/images
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from latency.cache import REPOSITORY

RESULTS, IMAGES = REPOSITORY / "benchmarks" / "results", REPOSITORY / "docs" / "images"
# Okabe and Ito's palette, as in the profiler's page.
STAGES = {"read": "#0072b2", "preprocess": "#56b4e9", "encode": "#d55e00", "rest": "#cc79a7"}
PEER, OURS = "#8a8f98", "#30343b"


def main() -> None:
    """Draw both."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "latency"}
    IMAGES.mkdir(parents=True, exist_ok=True)
    waterfall(json.loads((RESULTS / "end_to_end.json").read_text(encoding="utf-8")))
    growth(json.loads((RESULTS / "growth.json").read_text(encoding="utf-8")))


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
