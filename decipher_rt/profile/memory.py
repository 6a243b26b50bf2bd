"""Memory of this process, and what a run allocates once everything is warm."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Allocations:
    """What one warm run allocates.

    Attributes
    ----------
    python_peak_mib : float
        Most that Python and numpy held at one time beyond what they held before the run (tracemalloc).
    python_growth_kib : float
        What was still held after the run: 0 where nothing leaks and nothing is kept.
    page_faults : int
        Pages that the run touched for the first time (minor faults), engines and libraries included.
    """

    python_peak_mib: float
    python_growth_kib: float
    page_faults: int


def resident_mib() -> tuple[float, float]:
    """Return resident memory now and at its peak since this program began, in MiB (VmRSS and VmHWM of proc(5))."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    now, peak = (int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def allocations_of(run: Callable[[], object]) -> Allocations:
    """Run twice: once for page faults, and once under tracemalloc, which makes it slow."""
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    gc.collect()
    tracemalloc.start()
    try:
        run()  # what is made once under tracemalloc itself
        gc.collect()
        tracemalloc.reset_peak()
        held, _ = tracemalloc.get_traced_memory()
        run()
        _, peak = tracemalloc.get_traced_memory()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return Allocations(round((peak - held) / 2**20, 2), round((after - held) / 2**10, 2), faults)
