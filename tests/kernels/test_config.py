"""Tile sizes as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decipher_rt.kernels.config import (
    ARCHITECTURES,
    TUNED,
    UNTUNED,
    AttentionConfig,
    PatchEmbed3dConfig,
    Rule,
    Tuning,
    attention_config,
    patch_embed3d_config,
    ragged,
    read_tuning,
    tuning,
    write_tuning,
)

SMALL = PatchEmbed3dConfig(32, 32, 32, 8, 4, 1)
LARGE = PatchEmbed3dConfig(128, 128, 64, 8, 8, 3)
TILES = AttentionConfig(64, 64, 4, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rules = (Rule({"rows": 100, "ragged": 0}, SMALL, {"tflops": 1.5}), Rule({}, LARGE, {}))
    write_tuning(tmp_path / "sm_80.json", Tuning(80, "a card", rules, (Rule({"head_dim": 64}, TILES, {}),)))
    return tmp_path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_ships_and_claims_no_tuning_without_a_measurement(architecture: int) -> None:
    shipped = read_tuning(TUNED / f"sm_{architecture}.json")
    assert shipped.architecture == architecture
    rules = [*shipped.patch_embed3d, *shipped.attention]
    measured = [bool(rule.measured) for rule in rules]
    assert not any(measured) if shipped.source == UNTUNED else any(measured)
    assert rules
    for rows in (1, 128, 4096, 10**6):
        for patch in ((16, 16, 16), (5, 5, 5)):
            for item in (2, 4):
                patch_embed3d_config(architecture, rows, item, (80, 80, 80), patch)
    for head_dim in (32, 64, 96):
        for batch_heads in (1, 12, 4096):
            attention_config(architecture, head_dim, 517, batch_heads)


def test_written_is_read(folder: Path) -> None:
    assert read_tuning(folder / "sm_80.json").patch_embed3d[0].measured == {"tflops": 1.5}
    assert [path.name for path in folder.iterdir()] == ["sm_80.json"]


def test_the_first_rule_that_holds_is_taken(folder: Path) -> None:
    whole = ((128, 128, 128), (16, 16, 16))
    assert patch_embed3d_config(80, 100, 4, *whole, folder) == SMALL
    assert patch_embed3d_config(80, 101, 4, *whole, folder) == LARGE
    assert patch_embed3d_config(80, 100, 4, (15, 15, 15), (5, 5, 5), folder) == LARGE
    with pytest.raises(ValueError, match="no tuning rule"):
        attention_config(80, 96, 1, 1, folder)


def test_a_newer_architecture_takes_the_nearest_older_file(folder: Path) -> None:
    assert tuning(121, folder).architecture == 80
    with pytest.raises(ValueError, match="no tile sizes for sm_75"):
        tuning(75, folder)


def test_another_schema_is_refused(folder: Path) -> None:
    path = folder / "sm_80.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "other/1"}))
    with pytest.raises(ValueError, match=r"sm_80\.json: schema is 'other/1'"):
        read_tuning(path)


@pytest.mark.parametrize(
    ("grid", "patch", "expected"),
    [
        ((128, 128, 128), (16, 16, 16), 0),
        ((96, 96, 96), (12, 12, 12), 0),
        ((90, 90, 90), (15, 15, 15), 1),
        ((10, 9, 8), (5, 3, 4), 1),
    ],
)
def test_ragged(grid: tuple[int, int, int], patch: tuple[int, int, int], expected: int) -> None:
    assert ragged(grid, patch) == expected
