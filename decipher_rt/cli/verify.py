"""``decipher-rt verify``: does this machine give what the bundle promises."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.cli.options import engine_options
from decipher_rt.errors import one_line

if TYPE_CHECKING:
    from decipher_rt.verify import VerifyRow


@click.command(
    short_help="Run a bundle's golden case on this machine.",
    epilog="Example: decipher-rt verify my-bundle --engine openvino",
)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@engine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    bundle: Path | None, engine: str, device: str | None, precision: Any, threads: int | None, as_json: bool
) -> None:
    """Run the golden case of BUNDLE (default: the one that ships) on this machine.

    Each output is compared with the fp32 PyTorch reference stored in the bundle. Exit status 1 where one differs by
    more than the bundle allows.
    """
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.verify import MIN_EMBEDDING_COSINE, verify_bundle

    opened = open_bundle(bundle or DEFAULT_BUNDLE)
    report = verify_bundle(opened, engine, precision, threads, device)
    if as_json:
        rows = [_row(row) for row in report.rows]
        said = {**dataclasses.asdict(report), "embedding_cosine": _finite(report.embedding_cosine)}
        click.echo(json.dumps({**said, "rows": rows, "passed": report.passed}, allow_nan=False))
    else:
        ran = f"{report.engine} {report.precision} on {report.device}"
        click.echo(one_line(f"{opened.manifest.name} {opened.manifest.version}: {ran}"))
        click.echo(f"  embedding cosine {report.embedding_cosine:.7f}, at least {MIN_EMBEDDING_COSINE}")
        for row in report.rows:
            mark = click.style("ok", fg="green") if row.passed else click.style("differs", fg="red")
            answer = f"{row.answer}" + (f" (expected {row.expected})" if row.answer != row.expected else "")
            error = f"error {row.error:.2e}, allowed {row.tolerance:.2e}"
            click.echo(f"  {mark} {one_line(row.output):<16} {error}  {one_line(answer)}")
    raise SystemExit(0 if report.passed else 1)


def _row(row: VerifyRow) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "error": _finite(row.error), "passed": row.passed}


def _finite(number: float) -> float | None:
    """Return null for what JSON has no number for."""
    return number if math.isfinite(number) else None
