"""From a DICOM series to an embedding: decipher-rt beside MONAI + PyTorch, alternating in one run.

    python benchmarks/end_to_end.py [SERIES] [--rounds 15] [--cold 5] [--json benchmarks/results/end_to_end.json]
    python benchmarks/end_to_end.py --quick

The encoder is the same for all: ViT-Base, 89 M, 128^3 grid, 16^3 patches, random weights, 2 threads each. (a) MONAI
transforms + torch eager, (b) with torch.compile, (c) dicomsdl + MONAI's lazy resampling + onnxruntime, (d)
decipher-rt in fp32 with all tokens, (e) decipher-rt with foreground tokens and int8. Between (a) and (e) stand
the techniques one at a time. Every way has a process of its own; they take turns, so that a busy machine slows all of
them.

Warm: series folder in, embedding out, in a loaded process. Cold: a new process, series folder in, JSON out, the page
cache as it is. Peak memory: of the cold process. ``ratio_to_a`` is (a)'s figure divided by the step's own, the median
of the rounds' ratios: larger is better throughout. Exit status 1 where (a) and (d) do not agree or a target is
missed. Needs the extra ``bench``; the first run builds the model's bundles in the cache (a minute).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from latency.cache import REPOSITORY, series_folder
from latency.processes import Cold, Worker, cold_step
from latency.provenance import provenance
from latency.steps import BY_NAME, STEPS

SHARED = Path(os.environ.get("DECIPHER_RT_SHARED_DATA", REPOSITORY.parent / "shared" / "data")) / "dicom"
REFERENCE, OTHER = SHARED / "philips_t1_mprage_sag", SHARED / "siemens_t1_fl2d_sag_hfs"
QUICK = ("a", "b", "c", "d", "e")
SAME_COSINE = 0.9999

Figures = dict[str, dict[str, Any]]


def main() -> int:
    """Measure, print, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", nargs="?", type=Path, help="folder of one series of single slices")
    parser.add_argument("--rounds", type=int, default=15, help="warm rounds (15)")
    parser.add_argument("--cold", type=int, default=5, help="cold rounds (5)")
    parser.add_argument("--threads", type=int, default=2, help="of every way (2)")
    parser.add_argument("--steps", default="", help="only these, by name, separated by commas; (a) is always there")
    parser.add_argument("--quick", action="store_true", help="(a) to (e), few rounds, within three minutes")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    names = list(QUICK) if options.quick else [step.name for step in STEPS]
    if options.steps:
        names = ["a", *(name for name in options.steps.split(",") if name != "a")]
    rounds, colds = (4, 1) if options.quick else (options.rounds, options.cold)
    series = (options.series or default_series()).resolve()
    # In processes of their own: this one stays small, see processes.cold.
    models = Path(output("base_model.py").splitlines()[-1])
    others = [str(OTHER)] if OTHER.is_dir() else []
    agreement = json.loads(output("agreement.py", str(series), str(models), *others).splitlines()[-1])
    began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    warm, stages, warm_peak, loading = measure_warm(names, series, models, options.threads, rounds)
    colds_of = measure_cold(names, series, models, options.threads, colds, quick=options.quick)
    report: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "series": {"name": series.name, "files": len(list(series.iterdir()))},
        "steps": {name: BY_NAME[name].what for name in names},
        "warm": figures({name: [run["wall_s"] for run in runs] for name, runs in warm.items()}),
        "warm_cpu": figures({name: [run["cpu_s"] for run in runs] for name, runs in warm.items()}),
        "cold": figures({name: [one.wall_s for one in found] for name, found in colds_of.items()}),
        "cold_cpu": figures({name: [one.cpu_s for one in found] for name, found in colds_of.items()}),
        "peak_mib": figures({name: [one.peak_mib for one in found] for name, found in colds_of.items()}),
        "warm_peak_mib": warm_peak,
        "loading_s": loading,
        "stages_ms": stages,
        "agreement": agreement,
        "unit": "seconds and MiB; ratio_to_a is (a) divided by the step, larger is better",
        "rounds": rounds,
        "cold_rounds": colds,
        "threads": options.threads,
        "began": began,
        **provenance(),
    }
    report["targets"] = targets(report)
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(target["holds"] for target in report["targets"]) else 1


def default_series() -> Path:
    """Return the real reference series where it is at hand, else a synthetic one of its size."""
    if REFERENCE.is_dir():
        return REFERENCE
    folder = series_folder() / "170x256x256"
    output("series.py", str(folder), "170", "256", "256")
    return folder


def output(script: str, *arguments: str) -> str:
    """Run a script of this benchmark and return what it prints."""
    command = [sys.executable, str(Path(__file__).parent / "latency" / script), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure_warm(
    names: Sequence[str], series: Path, models: Path, threads: int, rounds: int
) -> tuple[dict[str, list[dict[str, Any]]], Figures, dict[str, float], dict[str, float]]:
    """Let the loaded processes take turns."""
    workers = {}
    for name in names:
        tell(f"loading ({name}) {BY_NAME[name].what}")
        workers[name] = Worker(name, series, models, threads)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        tell(f"warm round {number + 1} of {rounds}")
        for name, worker in workers.items():
            runs[name].append(worker.run())
    stages = {
        name: {stage: round(statistics.median(run["stages_ms"][stage] for run in found), 3) for stage in order}
        for name, found in runs.items()
        if (order := list(found[0]["stages_ms"]))
    }
    loading = {name: round(w.ready["loaded_s"] + w.ready["warm_up_s"], 3) for name, w in workers.items()}
    peaks = {name: round(worker.end()["peak_mib"], 1) for name, worker in workers.items()}
    return runs, stages, peaks, loading


def measure_cold(
    names: Sequence[str], series: Path, models: Path, threads: int, rounds: int, quick: bool
) -> dict[str, list[Cold]]:
    """Start every way anew in turns; the quick run leaves out (b), which compiles for most of a minute."""
    found: dict[str, list[Cold]] = {name: [] for name in names if not (quick and name == "b")}
    for number in range(rounds):
        for name in found:
            tell(f"cold round {number + 1} of {rounds}: ({name})")
            found[name].append(cold_step(name, BY_NAME[name].command, series, models, threads))
    return found


def figures(values: Mapping[str, Sequence[float]]) -> Figures:
    """Return median, min, max, and the ratio of (a) to each with its spread over the rounds."""
    table: Figures = {}
    for name, own in values.items():
        ratios = [a / b for a, b in zip(values["a"], own, strict=True)]
        table[name] = {
            "median": round(statistics.median(own), 4),
            "min": round(min(own), 4),
            "max": round(max(own), 4),
            "ratio_to_a": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "n": len(own),
        }
    return table


def targets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold the figures against what the project promises."""
    warm, cold, peak, stages = (report[key] for key in ("warm", "cold", "peak_mib", "stages_ms"))
    same = report["agreement"]["a_and_d_on_the_same_grid"]["cosine"]
    found = [("(a) and (d) agree on one grid: cosine", same, ">=", SAME_COSINE)]
    if "d" in warm:
        outside = 1 - stages["d"]["encode"] / stages["d"]["total"]
        found += [
            ("(d) warm, times as fast as (a)", warm["d"]["ratio_to_a"], ">=", 2.3),
            ("(d) outside the encoder, share", outside, "<=", 0.25),
        ]
    if {"c", "d"} <= set(warm):
        found.append(("(d) warm, times as fast as (c)", warm["d"]["ratio_to_a"] / warm["c"]["ratio_to_a"], ">=", 1.0))
    if "e" in warm:
        found += [
            ("(e) warm, times as fast as (a)", warm["e"]["ratio_to_a"], ">=", 6.0),
            ("(e) cold, times as fast as (a)", cold["e"]["ratio_to_a"], ">=", 5.0),
            ("(e) peak memory, share of (a)", 1 / peak["e"]["ratio_to_a"], "<=", 0.5),
        ]
    return [
        {
            "target": name,
            "measured": round(value, 6 if "cosine" in name else 3),
            "wanted": f"{sign} {wanted}",
            "holds": value >= wanted if sign == ">=" else value <= wanted,
        }
        for name, value, sign, wanted in found
    ]


def show(report: Mapping[str, Any]) -> None:
    """Print tables for people."""
    lines = [
        f"{report['series']['name']}, {report['threads']} threads, {report['rounds']} warm and {report['cold_rounds']} "
        f"cold rounds; {report['machine']['processor']}, load {report['load_average']}"
    ]
    for title, key, digits in (("warm, s", "warm", 3), ("cold, s", "cold", 3), ("peak memory, MiB", "peak_mib", 0)):
        lines += ["", f"{title:<20}median      min      max   (a) / it    spread"]
        for name, row in report[key].items():
            numbers = "".join(f"{row[column]:>9.{digits}f}" for column in ("median", "min", "max"))
            spread = f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"
            lines.append(
                f"  ({name})".ljust(17)
                + f"{numbers}{row['ratio_to_a']:>11.2f}    {spread:<14}  {report['steps'][name]}"
            )
    lines += ["", "stages of decipher-rt, ms, medians"]
    for name, row in report["stages_ms"].items():
        lines.append(f"  ({name})".ljust(8) + ", ".join(f"{stage} {ms:.1f}" for stage, ms in row.items()))
    agreement = report["agreement"]
    same = agreement["a_and_d_on_the_same_grid"]
    differ = agreement["preprocessing_of_a_and_d"]
    lines += [
        "",
        f"(a) and (d) on the same grid: embeddings' cosine {same['cosine']:.8f}, largest difference of an element "
        f"{same['max_abs_difference']:.1e}",
        f"preprocessing of (a) and (d): grids {differ['grids_apart_mm']:.2f} mm apart; values apart by "
        f"{differ['mean_difference_of_window']:.2%} of the window on average, "
        f"{differ['mean_difference_of_window_in_tissue']:.2%} in tissue; correlation {differ['correlation']:.4f}",
        f"embeddings' cosine: (a) and (d), each with its own preprocessing, {differ['embedding_cosine']:.5f}; "
        f"(d) and (e) {agreement['d_and_e']['embedding_cosine']:.4f}",
    ]
    if "another_series" in agreement:
        lines.append(f"  for scale, (d) on two series: {agreement['another_series']['embedding_cosine']:.4f}")
    lines.append("")
    for target in report["targets"]:
        verdict = "holds " if target["holds"] else "MISSED"
        lines.append(f"  {verdict} {target['target']}: {target['measured']} ({target['wanted']})")
    print("\n".join(lines))


def tell(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
