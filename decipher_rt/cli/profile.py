"""``decipher-rt profile``: where the time goes."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.cli.options import READ_OPTIONS, bundle_option, engine_options, given, heads_option, read_options
from decipher_rt.errors import DecipherError

if TYPE_CHECKING:
    from collections.abc import Callable

    from decipher_rt.profile.cold import ColdRun
    from decipher_rt.series import ReadOptions


@click.command(
    short_help="Say where the time goes, stage by stage.",
    epilog="""\b
Examples:
  decipher-rt profile series/
  decipher-rt profile series/ --precision int8 --json > now.json
  decipher-rt profile series/ --html profile.html --trace trace.json
  decipher-rt profile --compare before.json now.json --html changes.html
""",
)
@click.argument("series", required=False, type=click.Path(path_type=Path))
@bundle_option
@heads_option
@engine_options
@click.option("--runs", default=20, show_default=True, type=click.IntRange(1), help="Warm runs, one at a time.")
@click.option("--cold", default=3, show_default=True, type=click.IntRange(0), help="Runs in a new process each.")
@click.option("--throughput", default=0, metavar="N", type=click.IntRange(0), help="Also N series in one call.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a trace for Perfetto or Chrome.")
@click.option("--html", type=click.Path(path_type=Path), help="Write one self-contained page.")
@read_options
@click.option(
    "--compare", nargs=2, type=click.Path(path_type=Path), metavar="A.json B.json", help="Compare two earlier profiles."
)
def profile(
    series: Path | None,
    bundle: Path | None,
    heads: tuple[str, ...] | None,
    engine: str,
    device: str | None,
    precision: Any,
    threads: int | None,
    runs: int,
    cold: int,
    throughput: int,
    as_json: bool,
    trace: Path | None,
    html: Path | None,
    volume: int,
    allow_gaps: bool,
    any_modality: bool,
    compare: tuple[Path, Path] | None,
) -> None:
    """Measure one SERIES stage by stage: cold (a new process), warm (one at a time), and, apart, saturated.

    The stages are consecutive, and their sum is compared with a total that is measured on its own.
    """
    from decipher_rt.atomic import require_place

    for written in filter(None, (trace, html)):
        require_place(written)
    if compare:
        idle = given(
            "bundle", "heads", "engine", "device", "precision", "threads", "runs", "cold", "throughput", "trace",
            *READ_OPTIONS,
        )  # fmt: skip
        if series or idle:
            raise click.UsageError(f"--compare takes two files and measures nothing: leave out {idle or 'SERIES'}")
        _compare(compare, as_json, html)
        return
    if series is None:
        raise click.UsageError("Missing argument 'SERIES'")
    from decipher_rt.series import ReadOptions

    session_arguments = {"engine": engine, "device": device, "precision": precision, "threads": threads, "heads": heads}
    options = ReadOptions(volume=volume, allow_gaps=allow_gaps, any_modality=any_modality)
    report, trace_text = _profile(
        series, bundle, session_arguments, options, runs, cold, throughput, wanted_trace=bool(trace)
    )
    if trace and trace_text:
        _write(trace, trace_text)
    if html:
        from decipher_rt.profile.html import html_report

        _write(html, html_report(report))
    if as_json:
        click.echo(json.dumps(report))
        return
    from decipher_rt.profile.report import text_report

    click.echo(text_report(report))


def _profile(
    series: Path,
    bundle: Path | None,
    session_arguments: dict[str, Any],
    options: ReadOptions,
    runs: int,
    cold: int,
    throughput: int,
    wanted_trace: bool,
) -> tuple[dict[str, Any], str | None]:
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.engines.threads import usable_cores
    from decipher_rt.profile.measure import measure_throughput, measure_warm
    from decipher_rt.profile.peak import measure_peak
    from decipher_rt.profile.report import build_report
    from decipher_rt.session import Session

    begin = time.perf_counter()
    opened = open_bundle(bundle or DEFAULT_BUNDLE, only_used=True)
    middle = time.perf_counter()
    session = Session(opened, **session_arguments)
    load = {"bundle open": (middle - begin) * 1e3, "engine load": (time.perf_counter() - middle) * 1e3}
    tell = _Progress()
    warm = measure_warm(session, series, options, runs, lambda: tell("warm runs"))
    saturated = measure_throughput(session, series, options, throughput, usable_cores()) if throughput else None
    cold_runs = _cold_runs(series, bundle, session_arguments, options, cold, lambda: tell("cold runs"))
    tell.done()
    report = build_report(
        bundle=opened,
        encoder=session.encoder,
        warm=warm,
        cold=cold_runs,
        throughput=saturated,
        peak=measure_peak(),
        load=load,
        command=shlex.join(["decipher-rt", *sys.argv[1:]]),
    )
    if not wanted_trace:
        return report, None
    from decipher_rt.profile.trace import trace

    return report, trace(warm, cold_runs, saturated, report)


def _cold_runs(
    series: Path,
    bundle: Path | None,
    session_arguments: dict[str, Any],
    options: ReadOptions,
    count: int,
    progress: Callable[[], object],
) -> list[ColdRun]:
    from dataclasses import asdict

    from decipher_rt.profile.cold import run_cold

    found = []
    for _ in range(count):
        found.append(run_cold(series, bundle, asdict(options), session_arguments))
        progress()
    return found


def _compare(files: tuple[Path, Path], as_json: bool, html: Path | None) -> None:
    import dataclasses

    from decipher_rt.profile.compare import changed_conditions, compare_reports, text_comparison
    from decipher_rt.profile.html import html_comparison
    from decipher_rt.profile.report import read_report

    a, b = (read_report(path) for path in files)
    for path, report in zip(files, (a, b), strict=True):
        try:
            text_comparison(report, report, ("", ""))
            html_comparison(report, report, ("", ""))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            advice = "make it again with 'decipher-rt profile'"
            raise DecipherError(f"{path}: a part of the report is gone; {advice}") from None
    names = (str(files[0]), str(files[1]))
    if html:
        _write(html, html_comparison(a, b, names))
    if as_json:
        rows = [dataclasses.asdict(row) | {"verdict": row.verdict} for row in compare_reports(a, b)]
        click.echo(json.dumps({"a": names[0], "b": names[1], "not_the_same": changed_conditions(a, b), "stages": rows}))
    else:
        click.echo(text_comparison(a, b, names))


class _Progress:
    """Counts runs on a terminal's stderr; silent in a pipe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._shown = sys.stderr.isatty()

    def __call__(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1
        if self._shown:
            click.echo("\r" + ", ".join(f"{count} {name}" for name, count in self._counts.items()), nl=False, err=True)

    def done(self) -> None:
        """Leave the line empty."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)


def _write(path: Path, text: str) -> None:
    from decipher_rt.atomic import write_text

    write_text(path, text)
    click.echo(f"wrote {path}", err=True)
