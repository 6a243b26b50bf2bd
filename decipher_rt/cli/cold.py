"""What ``decipher-rt infer SERIES --json`` does, in a new process that notes when each part of it ended.

Run by `decipher_rt.profile.cold`; the last line of its output is one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(began_s: float) -> None:
    """Answer once. ``sys.argv[1]`` holds the arguments as JSON; ``began_s`` is when Python came to our first line."""
    arguments: dict[str, Any] = json.loads(sys.argv[1])
    marks: list[tuple[str, float, float]] = [("process start", began_s, 0.0)]

    def mark(part: str) -> None:
        marks.append((part, time.perf_counter(), time.process_time()))

    import decipher_rt.cli.infer  # noqa: F401  what the command imports, click included
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.errors import DecipherError
    from decipher_rt.pipeline import one_ahead, read_each
    from decipher_rt.profile.memory import resident_mib
    from decipher_rt.result import Failure, Result
    from decipher_rt.series import ReadOptions
    from decipher_rt.session import Session

    mark("imports")
    try:
        opened = one_ahead(read_each([Path(arguments["series"])], ReadOptions(**arguments["options"])))
        bundle = open_bundle(arguments["bundle"] or DEFAULT_BUNDLE, only_used=True)
        mark("bundle open")
        session = Session(bundle, **arguments["session"])
        mark("engine load")
        spans: list[Any] = []

        def write(result: Result, _: Any, clock: Any) -> Result:
            print(json.dumps(result.to_json()))
            clock.finish("write")
            spans.extend(clock.spans)
            return result

        for outcome in session.answer_each(opened, write):
            if isinstance(outcome, Failure):
                raise SystemExit(f"decipher-rt: {outcome.error}")
    except DecipherError as error:
        raise SystemExit(f"decipher-rt: {error}") from None
    mark("end")
    report = {
        "marks": marks,
        "spans": [[span.stage, span.start_s, span.wall_ms, span.cpu_ms] for span in spans],
        "peak_mib": resident_mib()[1],
    }
    print(json.dumps(report), flush=True)
