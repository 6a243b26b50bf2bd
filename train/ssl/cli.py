"""``decipher-rt train ssl``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..options import output_option


@click.command(
    epilog="\b\nExample:\n  decipher-rt train ssl train/configs/tiny/ssl.yaml -o runs/ssl run.steps=500 method=mae"
)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@output_option("runs/ssl")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Where series are kept on the grid. Default: OUTPUT/samples."
)
@click.option("--json", "as_json", is_flag=True, help="Print the last losses as one JSON object.")
def ssl(config: Path, overrides: tuple[str, ...], output: Path, cache: Path | None, as_json: bool) -> None:
    """Pretrain an encoder on images alone: self-distillation (DINO, iBOT, KoLeo) or a masked autoencoder.

    Killed at any moment, the same command goes on where it was. OUTPUT becomes a weights folder for 'decipher-rt train
    align' and 'decipher-rt train decoder'; its log.csv says whether the teacher's answers stay apart.
    """
    # Threads that spin while they wait take the core that the next batch is made on. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import json

    from ..config import load_config
    from ..distributed import rank
    from ..log import last_means
    from ..output import sole_writer
    from ..progress import Progress
    from .config import SSLConfig
    from .pretrain import pretrain

    settings = load_config(SSLConfig, config, overrides)
    with sole_writer(output):
        pretrain(settings, output, cache or output / "samples", Progress())
    if rank():
        return
    figures = last_means(output / "log.csv")
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    click.echo(f"wrote {output}: next, decipher-rt train align CONFIG.yaml encoder_from={output}")
