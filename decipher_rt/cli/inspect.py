"""``decipher-rt inspect``: what a bundle holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.errors import one_line

if TYPE_CHECKING:
    from decipher_rt.manifest import Head


@click.command(
    short_help="Say what a bundle holds.", epilog="Example: decipher-rt inspect my-bundle --json | jq .heads"
)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest, with the bundle's sha256 and size.")
def inspect(bundle: Path | None, as_json: bool) -> None:
    """Check the sums of BUNDLE (default: the one that ships) and say what it holds."""
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle

    opened = open_bundle(bundle or DEFAULT_BUNDLE)
    manifest = opened.manifest
    size = sum(file.stat().st_size for file in opened.path.rglob("*") if file.is_file())
    if as_json:
        click.echo(json.dumps({**manifest.to_json(), "sha256": opened.sha256, "bytes": size}))
        return
    spec, encoder = manifest.preprocessing, manifest.encoder
    name, version = one_line(manifest.name), one_line(manifest.version)
    click.echo(f"{click.style(name, bold=True)} {version}  {size / 1e6:.1f} MB, sums good")
    rows = [
        ("sha256", opened.sha256),
        ("use", manifest.intended_use),
        ("licence", manifest.licence),
        (
            "grid",
            f"{_by(spec.grid_shape)} voxels of {_by(spec.spacing_mm)} mm (S x A x R), patches {_by(spec.patch_shape)}",
        ),
        ("tokens", ", ".join(map(str, spec.token_buckets))),
        (
            "encoder",
            f"{encoder.parameters / 1e6:.1f} M parameters, {encoder.width} wide, embedding {encoder.embedding_size}",
        ),
        *(("engine", f"{engine.target} {engine.precision}: {engine.file}") for engine in manifest.engines),
        *(row for head in manifest.heads for row in _say_head(head, manifest.metrics.get(head.name))),
    ]
    if manifest.text:
        rows.append(("text", f"{manifest.text.file}, {manifest.text.max_tokens} tokens at most"))
    if manifest.scope:
        rows.append(("scope", f"{manifest.scope.method}, threshold {manifest.scope.threshold:.4g}"))
    rows += [
        ("numerics", f"{n.precision}: embedding cosine {n.embedding_cosine:.6f}, heads within {n.heads_max_error:.2g}")
        for n in manifest.numerics
    ]
    for label, text in rows:
        click.echo(f"  {label:<9} {one_line(text)}")


def _say_head(head: Head, figures: Any) -> list[tuple[str, str]]:
    rows = [("head", f"{head.name}: {head.kind} {', '.join(head.labels) or head.unit}".rstrip())]
    error = figures.get("calibration_error") if isinstance(figures, dict) else None
    if isinstance(error, float):
        rows.append(("", f"calibration error {error:.3f} on held-out series"))
    return [*rows, ("", head.description)] if head.description else rows


def _by(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
