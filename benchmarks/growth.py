"""How time and memory grow with the work: 1 to 64 series in one call, and series of 64x256x256 to 320x512x512.

    python benchmarks/growth.py [--json benchmarks/results/growth.json] [--repeats 5] [--quick]

decipher-rt with foreground tokens and int8 (base encoder) on synthetic series. Each count of series runs in a new
process, so that the peak memory is its own; the session is loaded and has answered once before the clock starts.
``busy`` is the CPU time over the wall time of the usable cores. A size is answered one series at a time in one
process, in turns. With many series the cores must be busy at least 90 % of the time; exit status 1 where they are
not. Needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from latency.cache import series_folder
from latency.provenance import provenance

COUNTS = (1, 2, 4, 8, 16, 32, 64)
SIZES = ((64, 256, 256), (128, 256, 256), (170, 256, 256), (192, 512, 512), (320, 512, 512))
USUAL = (170, 256, 256)
MANY = 16  # series from which on the cores shall be busy
WANTED_BUSY = 0.9


def main() -> int:
    """Measure, print, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--repeats", type=int, default=5, help="runs of every size (5)")
    parser.add_argument("--quick", action="store_true", help="up to 16 series, three sizes, three repeats")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)  # a process of its own: this many series, once
    parser.add_argument("--shapes", help=argparse.SUPPRESS)  # the same for sizes
    options = parser.parse_args()
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    if options.count:
        return say(many(options.count))
    if options.shapes:
        return say(sizes([tuple(map(int, s.split("x"))) for s in options.shapes.split(",")], repeats))
    counts, shapes = (COUNTS[:5], SIZES[:3]) if options.quick else (COUNTS, SIZES)
    for shape in {*shapes, USUAL}:
        script = Path(__file__).parent / "latency" / "series.py"
        subprocess.run([sys.executable, str(script), str(folder_of(shape)), *map(str, shape)], check=True)
    report: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "series_in_one_call": [again("--count", str(count)) for count in counts],
        "sizes": again("--shapes", ",".join("x".join(map(str, s)) for s in shapes), "--repeats", str(repeats)),
        **provenance(),
    }
    busy = [row["busy"] for row in report["series_in_one_call"] if row["series"] >= MANY]
    report["holds"] = min(busy) >= WANTED_BUSY
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if report["holds"] else 1


def folder_of(shape: Sequence[int]) -> Path:
    """Return where the synthetic series of a shape is kept."""
    return series_folder() / "x".join(map(str, shape))


def again(*arguments: str) -> Any:
    """Run this script in a process of its own and return what it says."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def say(document: Any) -> int:
    """Print one object."""
    print(json.dumps(document))
    return 0


def load_session() -> Any:
    """Load what ships; the bundle is built once."""
    import decipher_rt

    script = Path(__file__).parent / "latency" / "base_model.py"
    printed = subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return decipher_rt.load(Path(printed.splitlines()[-1]) / "foreground-int8", precision="int8")


def many(count: int) -> dict[str, Any]:
    """Answer for so many series in one call."""
    from decipher_rt.engines.threads import usable_cores
    from decipher_rt.profile.measure import measure_throughput
    from decipher_rt.series import ReadOptions

    session, folder = load_session(), folder_of(USUAL)
    session.infer(folder)
    found = measure_throughput(session, folder, ReadOptions(), count, usable_cores())
    return {
        "series": count,
        "wall_s": round(found.wall_s, 4),
        "series_per_s": round(count / found.wall_s, 3),
        "busy": round(found.busy, 4),
        "peak_mib": round(found.peak_mib, 1),
    }


def sizes(shapes: Sequence[Sequence[int]], repeats: int) -> list[dict[str, Any]]:
    """Answer for series of several sizes in turns, one at a time."""
    from decipher_rt.profile.measure import json_writer
    from decipher_rt.profile.memory import resident_mib

    session = load_session()
    times: dict[str, list[dict[str, float]]] = {"x".join(map(str, shape)): [] for shape in shapes}
    tokens = {}
    for number in range(repeats + 1):
        for name, found in times.items():
            start = time.perf_counter()
            result = session.infer(series_folder() / name, write=json_writer)
            if number:  # the first round warms up
                found.append(dict(result.timings_ms) | {"wall": (time.perf_counter() - start) * 1e3})
            tokens[name] = result.tokens["kept"]
    peak = resident_mib()[1]

    def middle(pick: Callable[[dict[str, float]], float], found: list[dict[str, float]]) -> float:
        return round(statistics.median(map(pick, found)), 2)

    return [
        {
            "shape": name,
            "tokens": tokens[name],
            "total_ms": middle(lambda t: t["wall"], found),
            "total_min_ms": round(min(t["wall"] for t in found), 2),
            "total_max_ms": round(max(t["wall"] for t in found), 2),
            "stages_ms": {
                stage: middle(lambda t, stage=stage: t[stage], found)
                for stage in ("read", "preprocess", "encode", "heads", "write")
            },
            "peak_mib_of_all": round(peak, 1),
        }
        for name, found in times.items()
    ]


def show(report: dict[str, Any]) -> None:
    """Print both tables."""
    print(f"170x256x256, in one call; {report['machine']['processor']}, load {report['load_average']}")
    print("  series   total s   series/s   cores busy   peak MiB")
    for row in report["series_in_one_call"]:
        print(
            f"  {row['series']:>6}{row['wall_s']:>10.2f}{row['series_per_s']:>11.2f}{row['busy']:>12.0%}"
            f"{row['peak_mib']:>11.0f}"
        )
    print("\none at a time (ms, medians)")
    print("  shape          total     read   preprocess   encode   tokens")
    for row in report["sizes"]:
        stages = row["stages_ms"]
        print(
            f"  {row['shape']:<12}{row['total_ms']:>8.1f}{stages['read']:>9.1f}{stages['preprocess']:>13.1f}"
            f"{stages['encode']:>9.1f}{row['tokens']:>9}"
        )
    print(f"\nfrom {MANY} series on the cores are busy {WANTED_BUSY:.0%} of the time: {report['holds']}")


if __name__ == "__main__":
    sys.exit(main())
