"""Run a series warm, one run after the other, and many copies of it at once; the two are never mixed."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from decipher_rt.clock import Span, StageClock, processor_s
from decipher_rt.errors import SeriesError
from decipher_rt.profile.memory import Allocations, allocations_of, resident_mib
from decipher_rt.profile.ranges import nvtx_ranges
from decipher_rt.result import Failure, Result
from decipher_rt.series import ReadOptions
from decipher_rt.session import Session
from decipher_rt.volume import Volume

WARM_UP_RUNS = 2  # the first run allocates, the second shows what is left to be allocated


@dataclass(frozen=True)
class Run:
    """One series answered: its stages and the total, measured on its own."""

    spans: tuple[Span, ...]
    total_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Warm:
    """Warm runs, one at a time, with nothing else to do: idle latency.

    Attributes
    ----------
    result : Result
        The last answer.
    volume_bytes : int
        Voxels of the series as read.
    warm_up : tuple of Run
        The runs before the measured ones.
    runs : tuple of Run
    loaded_mib : resident memory when the bundle was loaded
    growth_mib : its growth from the end of warm-up to the last run
    peak_mib : of this process and its decoder's, machine peak not included
    allocations : of one more run
    """

    result: Result
    volume_bytes: int
    warm_up: tuple[Run, ...]
    runs: tuple[Run, ...]
    loaded_mib: float
    growth_mib: float
    peak_mib: float
    allocations: Allocations


@dataclass(frozen=True)
class Throughput:
    """Many series in one call: what the machine does when there is always another one.

    Attributes
    ----------
    series : int
    wall_s : float
    busy : float
        Share of the usable cores' time that this process and its decoder's used.
    peak_mib : float
    runs : spans of each series; those of successive series overlap
    """

    series: int
    wall_s: float
    busy: float
    peak_mib: float
    runs: tuple[tuple[Span, ...], ...]


def measure_warm(
    session: Session, path: Path, options: ReadOptions, runs: int, progress: Callable[[], object] = lambda: None
) -> Warm:
    """Answer for one series again and again.

    Raises
    ------
    SeriesError
        If the path is not one readable series.
    """
    loaded_mib, _ = resident_mib()
    sizes: list[int] = []
    on_gpu = session.encoder.device != "cpu"

    def once() -> tuple[Result, Run]:
        clock = StageClock(on_finish=nvtx_ranges(on_gpu))
        start, cpu = time.perf_counter(), processor_s()
        result = session.infer(path, options, write=write_json, clock=clock)
        clock.extend()
        run = Run(tuple(clock.spans), (time.perf_counter() - start) * 1e3, (processor_s() - cpu) * 1e3)
        progress()
        return result, run

    def write_json(result: Result, volume: Volume, clock: StageClock) -> Result:
        sizes[:] = [volume.voxels.nbytes]
        return json_writer(result, volume, clock)

    warm_up = tuple(once()[1] for _ in range(WARM_UP_RUNS))
    warm_mib, _ = resident_mib()
    outcomes = [once() for _ in range(runs)]
    now_mib, peak_mib = resident_mib()
    return Warm(
        result=outcomes[-1][0],
        volume_bytes=sizes[0],
        warm_up=warm_up,
        runs=tuple(run for _, run in outcomes),
        loaded_mib=loaded_mib,
        growth_mib=max(0.0, now_mib - warm_mib),
        peak_mib=peak_mib,
        allocations=allocations_of(once),
    )


def measure_throughput(session: Session, path: Path, options: ReadOptions, series: int, cores: int) -> Throughput:
    """Answer for a series many times in one call.

    Raises
    ------
    SeriesError
        If one of them fails.
    """
    runs: list[tuple[Span, ...]] = []

    def write(result: Result, volume: Volume, clock: StageClock) -> Result:
        written = json_writer(result, volume, clock)
        runs.append(tuple(clock.spans))
        return written

    start, cpu = time.perf_counter(), processor_s()
    # One by one: files in a list would be taken for slices of one series.
    for outcome in session.infer_each(itertools.repeat(path, series), options, write):
        if isinstance(outcome, Failure):
            raise SeriesError(outcome.error)
    wall = time.perf_counter() - start
    busy = (processor_s() - cpu) / wall / cores
    return Throughput(series, wall, busy, resident_mib()[1], tuple(runs))


def json_writer(result: Result, volume: Volume, clock: StageClock) -> Result:  # noqa: ARG001
    """Make the line that ``infer --json`` prints; that is the stage ``write``."""
    json.dumps(result.to_json())
    clock.finish("write")
    return replace(result, timings_ms=clock.timings_ms())
