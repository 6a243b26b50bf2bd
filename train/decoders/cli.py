"""``decipher-rt train decoder``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..options import output_option


@click.command(
    epilog="\b\nExample:\n"
    "  decipher-rt train decoder train/configs/tiny/decoder-sequence.yaml encoder=runs/align -o runs/model"
)
@click.argument("arguments", nargs=-1, required=True, metavar="CONFIG... [KEY=VALUE]...")
@output_option("runs/decoder", "Weights folder of the model that the decoders become part of.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Where series and the encoder's tokens are kept. Default: OUTPUT/samples.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def decoder(arguments: tuple[str, ...], output: Path, cache: Path | None, as_json: bool) -> None:
    """Train decoders on the frozen encoder of encoder=RUN, one for each CONFIG, one after the other.

    RUN is the folder of train ssl, align or decoder. Decoders that OUTPUT has are kept; those of RUN where OUTPUT is
    new. The encoder's tokens are computed once for all decoders. Killed at any moment, the same command goes on where
    it was. KEY=VALUE holds for every CONFIG.
    """
    configs = [Path(a) for a in arguments if "=" not in a]
    overrides = [a for a in arguments if "=" in a]
    if not configs:
        raise click.UsageError("give one or more configurations, e.g. train/configs/tiny/decoder-sequence.yaml")
    # Threads that spin while they wait take the core that the next batch is made on. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..cli import show
    from ..config import load_config
    from ..output import sole_writer
    from ..progress import Progress
    from .config import DecoderRunConfig
    from .train import train_decoder

    settings = [load_config(DecoderRunConfig, path, overrides) for path in configs]
    if len(settings) > 1 and any(one.run.devices * one.run.nodes > 1 for one in settings):
        raise click.UsageError(
            "several processes (run.devices, run.nodes) train one decoder at a time: give one CONFIG"
        )
    weights = None
    with sole_writer(output):
        for one in settings:
            weights = train_decoder(one, output, cache or output / "samples", Progress())
    if weights is None:  # a process that helped
        return
    show(weights.metadata["metrics"], as_json)
    if not as_json:
        click.echo(f"wrote {output}: next, decipher-rt export {output}")
