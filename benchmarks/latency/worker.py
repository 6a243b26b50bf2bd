"""One way from a series to an embedding in a process of its own, told when to run.

    python benchmarks/latency/worker.py STEP SERIES MODELS THREADS          answers to "run" on standard input
    python benchmarks/latency/worker.py STEP SERIES MODELS THREADS --once   one answer as JSON, then the end

Idle processes sleep on their input, so that whoever runs has the machine for itself.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from latency.steps import BY_NAME

WARM_UP_RUNS = 2


def main() -> None:
    """Load, then answer."""
    warnings.simplefilter("ignore")
    name, series, models, threads, *once = sys.argv[1:]
    begin = time.perf_counter()
    answer = BY_NAME[name].make(Path(series), Path(models), int(threads))
    loaded_s = time.perf_counter() - begin
    if once:
        print(json.dumps({"embedding": [float(x) for x in answer()]}), flush=True)
        return
    begin = time.perf_counter()
    for _ in range(WARM_UP_RUNS):
        embedding = answer()
    say({"loaded_s": loaded_s, "warm_up_s": time.perf_counter() - begin, "embedding": [float(x) for x in embedding]})
    for line in sys.stdin:
        if line.strip() != "run":
            break
        start, cpu = time.perf_counter(), time.process_time()
        answer()
        said = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        say(said | {"stages_ms": dict(getattr(answer, "timings_ms", {}))})
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    say({"peak_mib": int(status["VmHWM"].split()[0]) / 1024})


def say(document: dict) -> None:
    """Print one line, marked: libraries print too."""
    print("@" + json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
