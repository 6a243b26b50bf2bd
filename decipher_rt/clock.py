"""The clock of one series: how long each stage took, in wall time and in CPU time."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

STAGES = ("read", "preprocess", "tokens", "encode", "heads", "write")
# A result's timings have fewer: a stage that is part of another there.
PART_OF = {"tokens": "preprocess"}
# Looked up among what is loaded: a clock imports nothing, and where this is not loaded no decoder runs.
DECODER_MODULE = "decipher_rt.dicom.decode_process"


@dataclass(frozen=True)
class Span:
    """One stage of one series.

    Attributes
    ----------
    stage : str
        One of ``STAGES``.
    start_s : float
        By ``time.perf_counter``, which on Linux is the same clock in every process.
    wall_ms : float
    cpu_ms : float
        By ``processor_s``, so all threads and the decoder's process: of this stage alone where nothing else runs.
    """

    stage: str
    start_s: float
    wall_ms: float
    cpu_ms: float


class StageClock:
    """Times of consecutive stages. A stage lasts from the end of the one before it, so no time falls between.

    Parameters
    ----------
    already_ms : float
        What stage ``read`` took before the clock was started: a series' share in finding all series of a folder.
    on_finish : callable, optional
        Called with the name of each stage at its end.

    Attributes
    ----------
    spans : list of Span
        The stages so far, in order; those that wrote nothing or were left out are missing.
    """

    def __init__(self, already_ms: float = 0.0, on_finish: Callable[[str], None] | None = None) -> None:
        self.spans: list[Span] = []
        self._on_finish = on_finish
        self._waited = 0.0
        self._cpu = processor_s()
        self._start = self._last = time.perf_counter() - already_ms / 1e3

    def finish(self, stage: str) -> None:
        """End a stage now."""
        now, cpu = time.perf_counter(), processor_s()
        self.spans.append(Span(stage, self._last, (now - self._last) * 1e3, (cpu - self._cpu) * 1e3))
        self._last, self._cpu = now, cpu
        if self._on_finish:
            self._on_finish(stage)

    def resume(self) -> None:
        """Go on after the series waited for its turn: the time since the last stage's end belongs to no stage."""
        now = time.perf_counter()
        self._waited += now - self._last
        self._last, self._cpu = now, processor_s()

    def extend(self) -> None:
        """Let the last stage last until now: what came after its end, such as freeing memory, belongs to it."""
        now, cpu = time.perf_counter(), processor_s()
        last = self.spans[-1]
        wall_ms, cpu_ms = last.wall_ms + (now - self._last) * 1e3, last.cpu_ms + (cpu - self._cpu) * 1e3
        self.spans[-1] = Span(last.stage, last.start_s, wall_ms, cpu_ms)
        self._last, self._cpu = now, cpu

    def timings_ms(self, running: str | None = None) -> dict[str, float]:
        """Return the stages of a result, and the total, which is measured from start to now; waiting is left out.

        Parameters
        ----------
        running : str, optional
            The stage that the time since the last one's end belongs to; default: the last one.
        """
        now = time.perf_counter()
        times = {stage: 0.0 for stage in STAGES if stage not in PART_OF}
        for span in self.spans:
            times[PART_OF.get(span.stage, span.stage)] += span.wall_ms
        running = running or (self.spans[-1].stage if self.spans else STAGES[0])
        times[PART_OF.get(running, running)] += (now - self._last) * 1e3
        return {**times, "total": (now - self._start - self._waited) * 1e3}


def processor_s() -> float:
    """Return the processor time, in seconds, of this process, of its children that ended, and of the running decoder.

    All threads of each. A few microseconds, with a decoder or without.
    """
    pid = decoder_pid()
    return time.process_time() + ended_children_s() + (_process_s(pid) if pid is not None else 0.0)


def ended_children_s() -> float:
    """Return the processor time, in seconds, of the children that ended, and of theirs (getrusage(2))."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def decoder_pid() -> int | None:
    """Return the process that decodes compressed images for this one; None where none runs."""
    module = sys.modules.get(DECODER_MODULE)
    pid: int | None = module.child_pid() if module else None
    return pid


def _process_s(pid: int) -> float:
    """Read another process's clock: its number is what clock_getcpuclockid(3) gives, which Python does not have."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # it ended just now
        return 0.0
