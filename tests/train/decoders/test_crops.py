"""Crops of series: tokens, voxels and truth of one place stay together, and what is rare is seen often."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from decipher_rt.train.decoders.crops import draw_crop
from decipher_rt.train.decoders.registry import DecoderConfig, build_decoder
from decipher_rt.train.decoders.stage import DecoderStage
from decipher_rt.train.model.vit import ViT, ViTConfig

CROPPED = DecoderConfig("tissue", "segmentation", "tissue", options={"channels": [16, 8], "skips": True, "crop": 2})
GRID, PATCH = (4, 3, 5), (2, 4, 2)


def numbered() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of each voxel's patch, and labels: one voxel of 1, many of 2, all of them in kept patches."""
    patches = torch.arange(60).reshape(4, 1, 3, 1, 5, 1).expand(4, 2, 3, 4, 5, 2).reshape(8, 12, 10)
    labels = torch.zeros(8, 12, 10, dtype=torch.uint8)
    labels[:4] = 2
    labels[7, 11, 9] = 1
    return patches, labels


def test_a_crop_holds_the_tokens_of_its_voxels() -> None:
    patches, labels = numbered()
    tokens = torch.tensor([59, 0, 3, 17, 31, 44, 58])
    for seed in range(40):
        crop = draw_crop(tokens, labels, PATCH, GRID, 2, np.random.default_rng(seed))
        seen = crop.of(patches, PATCH)
        assert seen.shape == (4, 8, 4)
        of_place = seen[::2, ::4, ::2].flatten()  # the patch in each place of the crop
        assert torch.equal(of_place[crop.tokens], tokens[crop.rows])
        assert set(tokens[crop.rows].tolist()) == set(tokens.tolist()) & set(of_place.tolist())
        assert len(crop.rows) == 8


def test_a_crop_is_never_larger_than_the_grid() -> None:
    patches, labels = numbered()
    crop = draw_crop(torch.arange(60), labels, PATCH, GRID, 4, np.random.default_rng(0))
    assert crop.of(patches, PATCH).shape == (8, 12, 8)
    assert sorted(crop.rows.tolist()) == sorted(crop.of(patches, PATCH)[::2, ::4, ::2].flatten().tolist())


@pytest.mark.parametrize(("rarity", "low", "high"), [(0.0, 0.2, 0.32), (1.0, 0.44, 0.58)])
def test_what_is_rare_is_seen_often(rarity: float, low: float, high: float) -> None:
    """Every second crop is around a label: the rare one of two alike, or with rarity 480 times of 481."""
    _, labels = numbered()
    rngs = map(np.random.default_rng, range(400))
    crops = [draw_crop(torch.arange(60), labels, PATCH, GRID, 1, rng, rarity) for rng in rngs]
    rare = np.mean([bool((crop.of(labels, PATCH) == 1).any()) for crop in crops])
    assert low < rare < high  # 1 in 60 of the others holds it too


@pytest.mark.parametrize("labels", [torch.zeros(8, 12, 10, dtype=torch.uint8), numbered()[1]])
def test_a_crop_without_a_label_or_without_a_token_there_is_around_a_token(labels: torch.Tensor) -> None:
    for seed in range(20):
        crop = draw_crop(torch.tensor([44]), labels, PATCH, GRID, 1, np.random.default_rng(seed))
        assert crop.rows.tolist() == [0]
        assert crop.tokens.tolist() == [0]
        assert crop.patches == (slice(2, 3), slice(2, 3), slice(4, 5))


@pytest.fixture(scope="module")
def stage(encoder: ViT, vit_config: ViTConfig, splits: dict[str, tuple[Any, Any]]) -> DecoderStage:
    torch.manual_seed(0)
    return DecoderStage(build_decoder(CROPPED, vit_config), splits["train"][1], splits["train"][0], 8, seed=2)


def test_a_step_sees_a_crop_of_each_series_whatever_the_number_of_processes(stage: DecoderStage) -> None:
    whole, halves = stage.batch(5, 0, 1), [stage.batch(5, rank, 2) for rank in (0, 1)]
    assert whole["image"].shape == (8, 1, 8, 8, 8)
    assert whole["target"]["map"].shape == (8, 8, 8, 8)
    assert whole["patch"].shape[:2] == whole["tokens"].shape == (8, 8)
    assert torch.equal(whole["image"], torch.cat([half["image"] for half in halves]))
    assert not torch.equal(whole["image"], stage.batch(6, 0, 1)["image"])
    with torch.no_grad():
        losses = [float(stage.model(half, 5)["loss"]) for half in halves]
        assert float(stage.model(whole, 5)["loss"]) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_the_weight_of_a_label_is_that_of_its_voxels(vit_config: ViTConfig) -> None:
    weighted = {**CROPPED.options, "weights": [1, 1, 1, 1, 5]}
    plain, heavy = (
        build_decoder(dataclasses.replace(CROPPED, options=options), vit_config)
        for options in (CROPPED.options, weighted)
    )
    raw, tokens = torch.randn(1, 5, 8, 8, 8), torch.tensor([[0, 3]])
    truth = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    truth[0, 0, 0, 0] = 4  # in the patch of token 0
    truth[0, 7, 7, 7] = 4  # in none
    here, there = (d.losses(raw, {"map": truth}, tokens)["cross_entropy"] for d in (plain, heavy))
    of_voxel = -raw[0, :, 0, 0, 0].log_softmax(0)[4]
    assert float(there - here) == pytest.approx(4 * float(of_voxel) / 128, rel=1e-4)
