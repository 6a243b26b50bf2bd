"""``decipher-rt demo``: the main job once, each step explained in a line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from decipher_rt.cli.options import bundle_option, read_options
from decipher_rt.errors import one_line, shown_path

if TYPE_CHECKING:
    from decipher_rt.manifest import Preprocessing
    from decipher_rt.result import Result

DEMO_SERIES = Path(__file__).parent.parent / "default" / "demo_series"
DEMO_TRUTH = DEMO_SERIES.with_suffix(".txt")
DEMO_PROMPTS = ("a FLAIR scan with a lesion", "a T1-weighted scan", "a T2-weighted scan")


@click.command(
    short_help="The main job once, each step explained.",
    epilog="""\b
Examples:
  decipher-rt demo
  decipher-rt demo my-series/ another.nii.gz -o out
""",
)
@click.argument("series", nargs=-1, type=click.Path(path_type=Path))
@bundle_option
@click.option(
    "-o",
    "--out",
    default=Path("decipher-rt-demo"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder.",
)
@read_options
def demo(
    series: tuple[Path, ...], bundle: Path | None, out: Path, volume: int, allow_gaps: bool, any_modality: bool
) -> None:
    """Answer for a small simulated head that ships as DICOM files (or for SERIES), and explain each step."""
    start = time.perf_counter()
    from importlib.util import find_spec

    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.result import NOTICE, Failure
    from decipher_rt.series import ReadOptions
    from decipher_rt.session import Session
    from decipher_rt.writers.folder import VIEWS, folder_writer

    opened = open_bundle(bundle or DEFAULT_BUNDLE, only_used=True)
    manifest = opened.manifest
    reads_words = bool(manifest.text and find_spec("tokenizers"))
    session = Session(opened, prompts=DEMO_PROMPTS if reads_words else ())
    encoder = manifest.encoder
    name = one_line(f"{manifest.name} {manifest.version}")
    _step("Open", f"bundle {name}: its files have the sums they were written with.")
    _step(
        "Load",
        f"a 3D vision transformer with {encoder.parameters / 1e6:.1f} M parameters on {session.encoder.name} "
        f"({session.encoder.device}, {session.encoder.threads} threads), {_milliseconds(start)} since the start.",
    )
    written: list[Path] = []
    failed = False
    options = ReadOptions(volume=volume, allow_gaps=allow_gaps, any_modality=any_modality)
    for outcome in session.infer_each(series or (DEMO_SERIES,), options, folder_writer(out, png=True)):
        if isinstance(outcome, Failure):
            click.echo(f"decipher-rt: {outcome.error}", err=True)
            failed = True
            continue
        _explain(outcome, manifest.preprocessing)
        if manifest.text and not reads_words:
            _step("Words", "not compared: pip install 'decipher-rt[text]'")
        if not series:
            _step("Truth", DEMO_TRUTH.read_text(encoding="utf-8").strip())
        written.append(Path(str(outcome.embedding)).parent / VIEWS)
    for picture in written:
        click.echo(click.style(f"The picture is {shown_path(picture)}", bold=True))
    click.echo(NOTICE)
    if failed:
        raise SystemExit(1 if written else 2)


def _explain(outcome: Result, spec: Preprocessing) -> None:
    from decipher_rt.cli.infer import say_answer, say_prompt

    described, times, tokens = outcome.series, outcome.timings_ms, outcome.tokens
    shape = " x ".join(map(str, described["shape_ras"]))
    name = " ".join(filter(None, (described["manufacturer"], described["description"])))
    _step("Read", f"{described['files']} files of {name}: {shape} voxels, {times['read']:.0f} ms.")
    resampled = f"{' x '.join(map(str, spec.grid_shape))} voxels of {spec.spacing_mm[0]:g} mm"
    _step("Preprocess", f"resampled and turned to {resampled} by DALI, {times['preprocess']:.0f} ms.")
    _step("Encode", f"the {tokens['kept']} of {tokens['total']} patches that hold tissue, {times['encode']:.0f} ms.")
    _step("Scope", f"{'in' if outcome.scope.inside else 'out'}: {one_line(outcome.scope.reason)}.")
    for head, answer in outcome.heads.items():
        _step("Answer", f"{one_line(head)}: {say_answer(answer)}")
        if answer.note:
            _step("", f"({one_line(answer.note)})")
    for prompt, near in outcome.prompts.items():
        _step("Words", f"{say_prompt(near)}  {one_line(prompt)}")
    _step("Total", f"{times['total']:.0f} ms, writing included.")


def _step(title: str, text: str) -> None:
    click.echo(f"  {click.style(f'{title:<11}', fg='cyan')}{text}")


def _milliseconds(start: float) -> str:
    return f"{(time.perf_counter() - start) * 1e3:.0f} ms"
