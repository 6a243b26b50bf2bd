"""``decipher-rt train``, ``evaluate`` and ``simulate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from .align.cli import align
from .decoders.cli import decoder
from .ssl.cli import ssl
from .text.cli import text

# Of evaluate and export, so that what one of them makes the other finds.
cache_option = click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Where series are kept on the grid, recorded ones too (2 to 6 MB each), and their tokens. Default: "
    "WEIGHTS/samples, where 'train decoder' kept them there; else .cache/samples.",
)


def cache_of(folder: Path, cache: Path | None) -> Path:
    """Return where the series of a weights folder are kept; ``cache`` where that is given."""
    own = folder / "samples"
    return cache or (own if own.is_dir() else Path(".cache/samples"))


@click.group(epilog="Example: decipher-rt train ssl train/configs/tiny/ssl.yaml -o runs/ssl")
def train() -> None:
    """Train a model; each stage is a command."""


train.add_command(ssl)
train.add_command(text)
train.add_command(align)
train.add_command(decoder)


@click.command(
    short_help="Say how well weights do on test series.",
    epilog="\b\nExample:\n  decipher-rt evaluate runs/tiny/model --json source.anatomy=ch2bet.nii.gz source.test=256",
)
@click.argument("arguments", nargs=-1, metavar="[WEIGHTS] [source.KEY=VALUE]...")
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def evaluate(arguments: tuple[str, ...], cache: Path | None, as_json: bool) -> None:
    """Say how well WEIGHTS (default: the model that ships) does on the test series of what it was trained on.

    source.KEY=VALUE changes that: another anatomy under the simulator's heads, more series, a manifest. A segmentation
    of the simulator's tissues is not measured on a manifest's masks.
    """
    folders = [Path(a) for a in arguments if "=" not in a]
    overrides = [a for a in arguments if "=" in a]
    if len(folders) > 1:
        raise click.UsageError(f"give one weights folder, not {len(folders)}")
    import torch

    from .checkpoint import DEFAULT_WEIGHTS
    from .decoders.evaluate import change_sources, evaluate_model
    from .progress import Progress
    from .weights import load_weights

    folder = folders[0] if folders else DEFAULT_WEIGHTS
    loaded = load_weights(folder)
    torch.set_num_threads(loaded.config.threads)
    weights = replace(loaded, config=change_sources(loaded.config, overrides))
    show(evaluate_model(weights, folder, cache_of(folder, cache), Progress()), as_json)


@click.command(
    short_help="Simulated MR series of heads, as DICOM.",
    epilog="\b\nExample:\n  decipher-rt simulate 1030 -o simulated && decipher-rt infer simulated --png",
)
@click.argument("seeds", nargs=-1, required=True, type=click.IntRange(0), metavar="SEED...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Each series is a folder in it.",
)
def simulate(seeds: tuple[int, ...], output: Path) -> None:
    """Simulate MR series of heads and write them as DICOM; the same SEED gives the same series.

    The report of each is printed. Patients are called SIMULATED.
    """
    from decipher_rt.atomic import require_place

    from .data import load_anatomy
    from .data.series import acquire, write_dicom
    from .text.findings import series_findings
    from .text.wordings import write_report

    for seed in seeds:
        require_place(output / f"{seed}" / "0001.dcm")
    anatomy = load_anatomy()
    for seed in seeds:
        series = acquire(seed, anatomy)
        files = write_dicom(series, output / f"{seed}")
        report = write_report(series_findings(series), seed, "train")
        click.echo(f"{output / str(seed)}: {len(files)} files. {' '.join(report)}")


def show(metrics: Mapping[str, object], as_json: bool) -> None:
    """Print figures, a line for each name."""
    if as_json:
        click.echo(json.dumps(metrics))
        return
    for name, figures in metrics.items():
        if isinstance(figures, dict):
            click.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
        else:
            click.echo(f"{name}: {figures}")
