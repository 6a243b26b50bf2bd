"""``decipher-rt train align``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..options import output_option


@click.command(
    epilog="\b\nExample:\n  decipher-rt train align train/configs/tiny/align.yaml -o runs/align encoder_from=runs/ssl"
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@output_option("runs/align")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Where series are kept on the grid. Default: OUTPUT/samples."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def align(config: Path, overrides: tuple[str, ...], output: Path, cache: Path | None, as_json: bool) -> None:
    """Align images and reports: contrastive training of the image encoder and the text encoder (InfoNCE).

    Killed at any moment, the same command goes on where it was. OUTPUT becomes a weights folder for 'decipher-rt train
    decoder'.
    """
    # Threads that spin while they wait take the core that the next batch is made on. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import json

    from ..config import load_config
    from ..output import sole_writer
    from ..progress import Progress
    from .config import AlignConfig
    from .train import align as train_alignment

    settings = load_config(AlignConfig, config, overrides)
    with sole_writer(output):
        figures = train_alignment(settings, output, cache or output / "samples", Progress())
    if not figures:  # one of several processes, not the first
        return
    if as_json:
        click.echo(json.dumps(figures))
        return
    for name, value in figures.items():
        click.echo(f"{name} {value}")
    click.echo(f"wrote {output}: next, decipher-rt train decoder CONFIG.yaml encoder={output}")
