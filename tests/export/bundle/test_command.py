"""``decipher-rt export``: what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from decipher_rt.bundle import open_bundle
from decipher_rt.export import bundle as export_module
from decipher_rt.export import cli, known
from decipher_rt.manifest import Numerics


def test_command_exports_and_prints_the_comparison(
    tmp_path: Path, run_export: Callable[..., Result], exported_again: Callable[..., None]
) -> None:
    exported_again()
    printed = json.loads(run_export("--json").stdout)["numerics"]
    assert [row["precision"] for row in printed] == ["fp32"]
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["numerics"] == printed
    open_bundle(tmp_path / "bundle")
    table = run_export()
    assert "fp32" in table.output
    assert "allowed" in table.output
    assert table.output.endswith(" MB): test 0, licence not stated\n")


def test_series_are_looked_for_where_they_were_kept(
    tmp_path: Path, run_export: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By 'train decoder' beside the weights, unless it was told another place."""
    asked: list[Path] = []
    monkeypatch.setattr(known, "calibration_inputs", lambda _config, _series, cache, _progress: asked.append(cache))
    monkeypatch.setattr(export_module, "export_bundle", lambda *_, **__: ())
    monkeypatch.setattr(cli, "_comparison", lambda _: "")
    arguments = ("--int8", "--evaluate", "0")
    run_export(*arguments)
    (tmp_path / "weights" / "samples").mkdir()
    run_export(*arguments)
    run_export(*arguments, "--cache", "elsewhere")
    assert asked == [Path(".cache/samples"), tmp_path / "weights" / "samples", Path("elsewhere")]


def test_the_comparison_is_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing cuts a column where no terminal says how wide it is; ``COLUMNS`` is what rich would heed otherwise."""
    monkeypatch.setenv("COLUMNS", "60")
    heads = {f"head_number_{index}": 90.0 + index for index in range(6)}
    rows = [
        Numerics("fp32", 1.0, 1e-6, 2e-6, 3e-6, 1e-3, "onnx", 1.0, heads),
        Numerics("int8", 0.99951, 0.01, 0.2, 0.03, 0.5, "onnx-vnni", 0.99441, heads),
    ]
    cli._console().print(cli._comparison(rows))
    printed = capsys.readouterr().out
    title, _, header, *_ = printed.splitlines()
    assert title.strip() == "against torch fp32: smallest cosines, largest absolute differences"
    columns = ("encoder", "cosine", "of tokens", "embedding", "tokens", "heads", "allowed")
    for name in (*columns, *(f"{head} %" for head in heads)):
        assert f" {name} " in header
    for figure in ("int8 vnni", "0.99951", "0.99441", "0.2", "95.00"):
        assert figure in printed
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert max(map(len, printed.splitlines())) < 250  # and no line is padded to that width
