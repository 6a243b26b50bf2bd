"""``decipher-rt infer``: series in, one result each out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.cli.options import bundle_option, engine_options, heads_option, read_options
from decipher_rt.errors import DecipherError, one_line, shown_path

if TYPE_CHECKING:
    from decipher_rt.boxes import Box
    from decipher_rt.result import HeadAnswer, PromptAnswer, Result
    from decipher_rt.series import Series

DEFAULT_OUT = Path("decipher-rt-out")


@click.command(
    short_help="Answer for each series: embedding, labels, scope.",
    epilog="""\b
Examples:
  decipher-rt infer series/
  decipher-rt infer study/ more/*.nii.gz -o out --png
  decipher-rt infer incoming/ -o out --new
  decipher-rt infer series.zip --json | jq .heads
  decipher-rt infer series/ --prompt "T1-weighted image" --prompt "T2-weighted image"
  decipher-rt infer series/ --heads sequence,tissue

Exit status: 0 all answered, 1 some of several series failed, 2 none could be answered. With --new those that OUT has
count as answered.
""",
)
@click.argument("paths", metavar="SERIES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@bundle_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write result.json, embedding.npy and segmentations (NIfTI) into OUT/<uid>/.",
)
@click.option("--new", "only_new", is_flag=True, help="Leave out series that OUT has a result of, and empty folders.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line for each series.")
@click.option("--png", is_flag=True, help=f"Write views.png too (into {DEFAULT_OUT}/ where -o is not given).")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="Compare each series with this text; given several times, with probabilities among them.",
)
@heads_option
@engine_options
@read_options
@click.option("--keep-phi", is_flag=True, help="Keep patient name, ID, birth date and sex in the result.")
def infer(
    paths: tuple[Path, ...],
    bundle: Path | None,
    out: Path | None,
    only_new: bool,
    as_json: bool,
    png: bool,
    prompts: tuple[str, ...],
    heads: tuple[str, ...] | None,
    engine: str,
    device: str | None,
    precision: Any,
    threads: int | None,
    volume: int,
    allow_gaps: bool,
    any_modality: bool,
    keep_phi: bool,
) -> None:
    """Answer for each DICOM or NIfTI series under SERIES: files, folders, .zip archives named themselves."""
    import decipher_rt
    from decipher_rt.pipeline import one_ahead, read_each
    from decipher_rt.result import Failure, Result
    from decipher_rt.series import ReadOptions
    from decipher_rt.writers.folder import folder_writer, has_answer

    out = out or (DEFAULT_OUT if png else None)
    write = folder_writer(out, png=png) if out else None
    options = ReadOptions(volume=volume, allow_gaps=allow_gaps, any_modality=any_modality, keep_phi=keep_phi)
    if only_new and out is None:
        raise click.UsageError("--new leaves out what OUT has: give OUT with -o")
    if only_new and not (paths := tuple(filter(_holds_something, paths))):
        return  # an inbox is empty most of the time
    left_out = 0

    def wanted(series: Series) -> bool:
        nonlocal left_out
        done = only_new and out is not None and bool(series.uid) and has_answer(out, series.uid, volume)
        left_out += done
        return not done

    opened = one_ahead(read_each(paths, options, wanted))  # the first series is read while the bundle loads
    session = decipher_rt.load(
        bundle, engine=engine, device=device, precision=precision, threads=threads, prompts=prompts, heads=heads
    )
    failed = answered = 0
    outcomes = _with_progress(session.answer_each(opened, write))  # by name, as in Session.answer_each
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            failed += 1
            click.echo(f"decipher-rt: {outcome.error}", err=True)
        else:
            answered += 1
        if as_json:
            _say_whole(json.dumps(outcome.to_json()))
        elif isinstance(outcome, Result):
            click.echo(summary(outcome, out))
    if left_out:
        click.echo(f"decipher-rt: {shown_path(out)} has results of {left_out} series, which were left out", err=True)
    sys.exit((1 if answered or left_out else 2) if failed else 0)


def _holds_something(path: Path) -> bool:
    from decipher_rt.dicom.source import sources

    try:
        return not path.is_dir() or any(True for _ in sources(path))
    except (OSError, DecipherError):  # said where it is read
        return True


def _say_whole(line: str) -> None:
    """Print a line, or raise OSError: where Python does not buffer, it writes what fits and says nothing."""
    sys.stdout.flush()
    stream, left = sys.stdout.buffer, memoryview(f"{line}\n".encode())
    while left:
        left = left[stream.write(left) :]
    stream.flush()


def _with_progress(outcomes: Any) -> Any:
    """Yield the outcomes, counting them on a terminal's stderr; silent in a pipe."""
    if not sys.stderr.isatty():
        yield from outcomes
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} series done"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("series", total=None)
        for outcome in outcomes:
            progress.advance(task)
            progress.stop()  # what is said of it begins its own line, and whoever leaves meanwhile gets the cursor back
            yield outcome
            progress.start()


def summary(result: Result, out: Path | None) -> str:
    """Say one result in a few lines for a person."""
    from decipher_rt.result import NOTICE

    series, times = result.series, result.timings_ms
    shape = " x ".join(map(str, series["shape_ras"]))
    spacing = " x ".join(f"{s:.2f}" for s in series["spacing_mm"])
    inside = click.style("in", fg="green") if result.scope.inside else click.style("out", fg="yellow")
    lines = [
        click.style(shown_path(series["path"]), bold=True)
        + f"  {series['manufacturer']}  {series['description']}".rstrip(),
        f"  volume     {shape} voxels, {spacing} mm (R x A x S), {series['files']} files",
        f"  scope      {inside}: {one_line(result.scope.reason)}",
    ]
    for name, answer in result.heads.items():
        lines.append(f"  {one_line(name):<10} {say_answer(answer)}")
        lines += [click.style(f"{'':13}{one_line(answer.note)}", dim=True)] * bool(answer.note)
    for prompt, near in result.prompts.items():
        lines.append(f"  {'prompt':<10} {say_prompt(near)}  {one_line(prompt)}")
    told = [*series["warnings"], *([result.engine["fallback"]] if "fallback" in result.engine else [])]
    lines += [f"  {click.style('warning', fg='yellow')}    {one_line(warning)}" for warning in told]
    stages = ", ".join(f"{stage} {ms:.0f}" for stage, ms in times.items() if stage != "total" and ms >= 0.5)
    lines.append(
        f"  time       {times['total']:.0f} ms: {stages}; {result.tokens['kept']} of {result.tokens['total']} tokens"
    )
    if out and isinstance(result.embedding, str):
        lines.append(f"  written    {shown_path(Path(result.embedding).parent)}")
    return "\n".join([*lines, f"  {NOTICE}"])


def say_answer(answer: HeadAnswer) -> str:
    """Say one head's answer on a line."""
    if answer.not_answered is not None:
        return click.style("not answered", fg="yellow")
    if answer.kind == "segmentation":
        return ", ".join(f"{one_line(label)} {ml:.4g} ml" for label, ml in answer.volumes_ml.items())
    if answer.kind == "localisation":
        return "; ".join(map(say_box, answer.boxes)) or "none found"
    if answer.label is None:
        return f"{answer.value:.4g} {one_line(answer.unit or '')}".rstrip()
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    others = ", ".join(f"{one_line(label)} {probability:.1%}" for label, probability in ranked[1:])
    return f"{click.style(one_line(answer.label), bold=True)} {ranked[0][1]:.1%}  ({others})"


def say_box(box: Box) -> str:
    """Say where a box is: its centre from the origin of the patient's coordinates, in mm."""
    center = " ".join(
        f"{positive if mm >= 0 else negative} {abs(mm):.0f}"
        for mm, positive, negative in zip(box.center_lps_mm, "LPS", "RAI", strict=True)
    )
    size = " x ".join(f"{mm:.0f}" for mm in box.size_mm)
    return f"{click.style(f'{size} mm', bold=True)} (S x A x R) at {center} mm, score {box.score:.1%}"


def say_prompt(answer: PromptAnswer) -> str:
    """Say how near a series is to a prompt."""
    if answer.cosine is None:
        return click.style("not answered", fg="yellow")
    if answer.probability is None:
        return f"cosine {answer.cosine:.3f} (a probability needs a second prompt)"
    return f"{answer.probability:6.1%}, cosine {answer.cosine:.3f}"
