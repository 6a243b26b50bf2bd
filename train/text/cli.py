"""``decipher-rt train text``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..options import output_option


@click.command(epilog="\b\nExample:\n  decipher-rt train text train/configs/tiny/text.yaml -o runs/text run.steps=500")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@output_option("runs/text")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def text(config: Path, overrides: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Pretrain a text encoder on reports: its own WordPiece tokenizer, then masked language modelling.

    text_from=FOLDER goes on from a BERT in Hugging Face's layout instead. Killed at any moment, the same command goes
    on where it was. OUTPUT becomes a weights folder for 'decipher-rt train align'.
    """
    # Threads that spin while they wait take the core that the next batch is made on. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import json

    from ..config import load_config
    from ..output import sole_writer
    from ..progress import Progress
    from .config import TextPretrainingConfig
    from .pretrain import pretrain

    settings = load_config(TextPretrainingConfig, config, overrides)
    with sole_writer(output):
        figures = pretrain(settings, output, Progress())
    if not figures:  # one of several processes, not the first
        return
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo("hidden words of test reports: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    click.echo(f"wrote {output}: next, decipher-rt train align CONFIG.yaml text_from={output}")
