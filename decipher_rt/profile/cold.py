"""A new process from its start to its end: what a command costs that answers for one series and leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decipher_rt.clock import STAGES, ended_children_s
from decipher_rt.errors import DecipherError

BEFORE = ("process start", "imports", "bundle open", "engine load")
PARTS = (*BEFORE, *STAGES, "exit")
TIMEOUT_S = 600
# Threads, the allocator, what is loaded before all else, and which cards there are.
ENVIRONMENT = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "PYTHONMALLOC",
    "LD_PRELOAD", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES", "CUDA_MODULE_LOADING",
)  # fmt: skip
# The first thing that the process does is to look at the clock.
PROGRAM = "import time; began = time.perf_counter(); from decipher_rt.cli.cold import main; main(began)"


@dataclass(frozen=True)
class ColdRun:
    """One process.

    Attributes
    ----------
    parts_ms : mapping
        ``PARTS`` in order, one beginning where the one before ends; they sum to the total. Reading runs beside the
        loading of the bundle: ``read`` here is what was left of it once the bundle was loaded.
    total_ms : float
        From the call that starts the process to its end, as its parent sees it.
    read_ms : float
        All of reading.
    cpu_ms : float
        Of the process from its start to its end, and of the process that decoded for it.
    peak_mib : float
        Of both.
    start_s : float
        By ``time.perf_counter``.
    """

    parts_ms: Mapping[str, float]
    total_ms: float
    read_ms: float
    cpu_ms: float
    peak_mib: float
    start_s: float


def run_cold(series: Path, bundle: Path | None, options: Mapping[str, Any], session: Mapping[str, Any]) -> ColdRun:
    """Answer for a series in a new process; the page cache is as it is.

    Parameters
    ----------
    series, bundle : path
    options, session : mapping
        Keyword arguments of ReadOptions and Session.

    Raises
    ------
    DecipherError
        With the process's own message, where it fails.
    """
    arguments = json.dumps(
        {"series": str(series), "bundle": str(bundle) if bundle else None, "options": options, "session": session}
    )
    command = [sys.executable, "-P", "-c", PROGRAM, arguments]
    start, cpu = time.perf_counter(), ended_children_s()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        printed, complaint = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise DecipherError(f"the cold run did not end within {TIMEOUT_S} s") from None
    end = time.perf_counter()
    if process.returncode:
        lines = [line for line in complaint.splitlines() if line.strip()]
        raise DecipherError(lines[-1].removeprefix("decipher-rt: ") if lines else "the cold run failed without a word")
    report = json.loads(printed.splitlines()[-1])
    return _cold_run(report, start, end, ended_children_s() - cpu)


def _cold_run(report: Mapping[str, Any], start_s: float, end_s: float, cpu_s: float) -> ColdRun:
    ends = {part: at for part, at, _ in report["marks"]}
    boundaries = [(part, ends[part]) for part in BEFORE]
    boundaries += [(stage, begin + wall_ms / 1e3) for stage, begin, wall_ms, _ in report["spans"]]
    boundaries.append(("exit", end_s))
    parts = dict.fromkeys(PARTS, 0.0)
    last = start_s
    for part, at in boundaries:
        parts[part] += max(at - last, 0.0) * 1e3
        last = max(at, last)
    read_ms = sum(wall_ms for stage, _, wall_ms, _ in report["spans"] if stage == "read")
    return ColdRun(parts, (end_s - start_s) * 1e3, read_ms, cpu_s * 1e3, report["peak_mib"], start_s)


def environment() -> dict[str, str]:
    """Return what of the environment changes how fast processes run."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
