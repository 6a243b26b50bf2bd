"""``decipher-rt export``: a bundle from a trained model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command(epilog="Example: decipher-rt export runs/first -o my-bundle --fp16")
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
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
def export(checkpoint: Path | None, output: Path, fp16: bool, as_json: bool) -> None:
    """Export CHECKPOINT, a folder with model.safetensors and config.yaml (default: the model that ships), as a bundle.

    Each encoder is compared with the model in torch at fp32; where one differs by more than its tolerance nothing is
    written.
    """
    from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
    from decipher_rt.train.weights import load_weights

    from .bundle import export_bundle, golden_case

    weights = load_weights(checkpoint or DEFAULT_WEIGHTS)
    numerics = export_bundle(weights, golden_case(weights.config), output, fp16=fp16)
    if as_json:
        click.echo(json.dumps({"bundle": str(output), "numerics": [dataclasses.asdict(row) for row in numerics]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="against torch fp32, largest absolute differences")
    for column in ("encoder", "embedding cosine", "embedding", "patch tokens", "heads and scope", "tolerance"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for row in numerics:
        errors = (row.embedding_max_error, row.patch_max_error, row.heads_max_error, row.tolerance)
        table.add_row(row.precision, f"{row.embedding_cosine:.7f}", *(f"{e:.2g}" for e in errors))
    console = Console()
    console.print(table)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    console.print(f"wrote {output} ({size / 1e6:.1f} MB)", highlight=False)
