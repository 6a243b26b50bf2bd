"""``decipher-rt export``: a bundle from a trained model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from decipher_rt.train.cli import cache_of, cache_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from decipher_rt.manifest import Numerics

WIDE = 10_000  # columns: no table reaches it, and rich fills none that it does not need
# Series: one changed answer among the heads of so many is a quarter of a point; half a precision rounds finely, and is
# judged on fewer, of which one changed answer is still less than the half point that may be lost.
EVALUATED, EVALUATED_HALF = 512, 320


@click.command(
    short_help="Weights to a bundle: ONNX, TensorRT, golden case.",
    epilog="Example: decipher-rt export runs/tiny/model -o my-bundle --fp16",
)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="decipher-rt-bundle",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the bundle.",
)
@click.option("--fp16", is_flag=True, help="Add an encoder in half precision.")
@click.option("--bf16", is_flag=True, help="With --engine: add TensorRT engines in bfloat16.")
@click.option(
    "--int8",
    is_flag=True,
    help="Add 8-bit encoders for CPUs (and for the --engine), calibrated on up to 32 training series of each source of "
    "the decoders, simulated or recorded, and judged on test series.",
)
@click.option(
    "--calibrate",
    "series",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="SERIES",
    help="Calibrate int8 on this series too; may be given several times.",
)
@click.option(
    "--evaluate",
    "evaluated",
    type=click.IntRange(0),
    help="Judge every encoder on so many series of each source, 0 for none (default: 512 with --int8 or --engine "
    "tensorrt, 320 with --fp16 or --bf16 alone).",
)
@click.option(
    "--max-drop",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Points of a head's metric that an encoder may lose against fp32.",
)
@cache_option
@click.option(
    "--engine",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="Add TensorRT engines: tensorrt-rtx for any card and on any machine, tensorrt for the card of this machine.",
)
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    metavar="sm_XX",
    help="Card that the tensorrt-rtx engine is for; may be given several times (default: all that it knows).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
def export(
    checkpoint: Path | None,
    output: Path,
    fp16: bool,
    bf16: bool,
    int8: bool,
    series: tuple[Path, ...],
    evaluated: int | None,
    max_drop: float,
    cache: Path | None,
    engine: str | None,
    architectures: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export CHECKPOINT, a folder with model.safetensors and config.yaml (default: the model that ships), as a bundle.

    Each encoder is compared with the model in torch at fp32; where one differs by more than its tolerance, or loses too
    much on the evaluation series, nothing is written.
    """
    from decipher_rt.bundle import require_bundle_place
    from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
    from decipher_rt.train.golden import load_golden
    from decipher_rt.train.progress import Progress
    from decipher_rt.train.weights import load_weights

    from .bundle import LICENCE, export_bundle
    from .evaluate import Judge
    from .known import calibration_inputs, known_series
    from .parts import TOKENIZER
    from .tensorrt.files import parse_wanted

    if series and not int8:
        raise click.UsageError("--calibrate is for 8-bit encoders: add --int8")
    require_bundle_place(output)
    plans = parse_wanted(engine, architectures, fp16=fp16, bf16=bf16, int8=int8)
    checkpoint = checkpoint or DEFAULT_WEIGHTS
    weights, tokenizer = load_weights(checkpoint), checkpoint / TOKENIZER
    config, progress, samples = weights.config, Progress(), cache_of(checkpoint, cache)
    count = evaluated if evaluated is not None else _evaluated(fp16 or bf16, int8, engine)
    numerics = export_bundle(
        weights,
        load_golden(checkpoint),
        output,
        fp16=fp16,
        int8=calibration_inputs(config, series, samples, progress) if int8 else None,
        judge=Judge(lambda: known_series(config, "test", count, samples, progress), max_drop) if count else None,
        plans=plans,
        tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else None,
    )
    if as_json:
        click.echo(json.dumps({"bundle": str(output), "numerics": [dataclasses.asdict(row) for row in numerics]}))
        return
    console = _console()
    console.print(_comparison(numerics))
    if plans is not None and not any(row.target.startswith(plans.flavour) for row in numerics):
        console.print(
            f"{plans.flavour} engines are built and not run: no card for them here. Each is checked on the golden case "
            "whenever it is loaded.",
            highlight=False,
        )
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    about = f"{config.name} {config.version}, licence {config.licence or LICENCE}"
    console.print(f"wrote {output} ({size / 1e6:.1f} MB): {about}", highlight=False)


def _evaluated(half: bool, int8: bool, engine: str | None) -> int:
    """Return on how many series encoders are judged where nobody says; fp32 alone has nothing to lose."""
    # Two builds of one network differ, so that an engine that is built for this card is judged like a new precision.
    if int8 or engine == "tensorrt":
        return EVALUATED
    return EVALUATED_HALF if half else 0


def _console() -> Console:
    """Return the console; in a pipe or a file, where no terminal sets a width, lines are as long as they need to be."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def _comparison(numerics: Sequence[Numerics]) -> Table:
    from rich.table import Table

    table = Table(title="against torch fp32: smallest cosines, largest absolute differences")
    metrics = list(numerics[0].metrics)
    judged = any(row.patch_cosine is not None for row in numerics)
    columns = ["encoder", "cosine", *(["of tokens"] if judged else []), "embedding", "tokens", "heads", "allowed"]
    for column in (*columns, *(f"{name} %" for name in metrics)):
        table.add_column(column, justify="left" if column == "encoder" else "right", no_wrap=True)
    for row in numerics:
        errors = (row.embedding_max_error, row.patch_max_error, row.heads_max_error, row.tolerance)
        name = row.precision if row.target == "onnx" else f"{row.precision} {row.target.removeprefix('onnx-')}"
        cosines = (row.embedding_cosine, row.patch_cosine)[: 1 + judged]
        figures = (f"{row.metrics[head]:.2f}" for head in metrics)
        table.add_row(
            name, *("" if c is None else f"{c:.5f}" for c in cosines), *(f"{e:.1g}" for e in errors), *figures
        )
    return table
