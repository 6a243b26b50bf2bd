"""A trace for Perfetto (ui.perfetto.dev) and Chrome (about:tracing): every run with its stages, on a common clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from decipher_rt.clock import Span
from decipher_rt.profile.cold import ColdRun
from decipher_rt.profile.measure import Throughput, Warm

WARM, SATURATED, FIRST_COLD = 1, 2, 10  # process numbers in the trace
# Which stages run on which thread when successive series overlap.
LANES = {
    "read": "read",
    "preprocess": "prepare",
    "tokens": "prepare",
    "encode": "answer",
    "heads": "answer",
    "write": "answer",
}


def trace(warm: Warm, cold: Sequence[ColdRun], throughput: Throughput | None, report: Mapping[str, Any]) -> str:
    """Return the trace as JSON text (Trace Event Format: complete events, microseconds)."""
    events: list[dict[str, Any]] = [*_named(WARM, "warm, one series at a time", ["run"])]
    runs = [(f"warm-up {n}", run) for n, run in enumerate(warm.warm_up)]
    runs += [(f"run {n}", run) for n, run in enumerate(warm.runs)]
    for name, run in runs:
        begin = run.spans[0].start_s
        events.append(_event(name, WARM, 0, begin, run.total_ms, cpu_ms=run.cpu_ms))
        events += _spans(run.spans, WARM, lambda _: 0)
    if throughput:
        lanes = ["read", "prepare", "answer"]
        events += _named(SATURATED, f"saturated, {throughput.series} series in one call", lanes)
        for number, spans in enumerate(throughput.runs):
            events += _spans(spans, SATURATED, lambda stage: lanes.index(LANES[stage]), series=number)
    for number, cold_run in enumerate(cold):
        events += _named(FIRST_COLD + number, f"cold run {number}: a new process", ["process"])
        begin = cold_run.start_s
        events.append(_event(f"cold run {number}", FIRST_COLD + number, 0, begin, cold_run.total_ms))
        for part, ms in cold_run.parts_ms.items():
            if ms:
                events.append(_event(part, FIRST_COLD + number, 0, begin, ms))
                begin += ms / 1e3
    origin = min(event["ts"] for event in events if "ts" in event)
    for event in events:
        if "ts" in event:
            event["ts"] = round(event["ts"] - origin, 3)
    said = {key: report[key] for key in ("command", "series", "bundle", "engine", "machine", "versions", "date")}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": said})


def _spans(spans: Iterable[Span], process: int, lane: Any, **arguments: Any) -> list[dict[str, Any]]:
    return [
        _event(s.stage, process, lane(s.stage), s.start_s, s.wall_ms, cpu_ms=round(s.cpu_ms, 3), **arguments)
        for s in spans
    ]


def _event(name: str, process: int, thread: int, start_s: float, wall_ms: float, **arguments: Any) -> dict[str, Any]:
    return {
        "name": name,
        "cat": "stage",
        "ph": "X",
        "ts": start_s * 1e6,
        "dur": round(wall_ms * 1e3, 3),
        "pid": process,
        "tid": thread,
        "args": arguments,
    }


def _named(process: int, name: str, threads: Sequence[str]) -> list[dict[str, Any]]:
    events = [{"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": name}}]
    events += [
        {"name": "thread_name", "ph": "M", "pid": process, "tid": number, "args": {"name": thread}}
        for number, thread in enumerate(threads)
    ]
    return events
