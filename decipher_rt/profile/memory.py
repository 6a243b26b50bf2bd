"""Memory of this process and its decoder's, and what a run allocates once everything is warm."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from decipher_rt.clock import decoder_pid


@dataclass(frozen=True)
class Allocations:
    """What one warm run allocates in this process; the decoder's is left out.

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
    """Return resident memory now and at its peak since this program began, in MiB (VmRSS and VmHWM of proc(5)).

    That of the process that decodes compressed images is added while it runs. The two peaks need not fall together, and
    libraries that both map count twice: with a decoder these are upper bounds.
    """
    now, peak = _resident_mib("self")
    pid = decoder_pid()
    if pid is not None:
        try:
            decoder_now, decoder_peak = _resident_mib(str(pid))
        except (OSError, KeyError):  # it ended just now: a process that ended has no status, or one without sizes
            return now, peak
        now, peak = now + decoder_now, peak + decoder_peak
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


def _resident_mib(process: str) -> tuple[float, float]:
    lines = Path("/proc", process, "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    now, peak = (int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak
