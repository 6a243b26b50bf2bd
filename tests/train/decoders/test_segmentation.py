"""Segmentations: labels are those of the logits, of the mask and of the patches that are there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from decipher_rt.train.decoders.contract import Known
from decipher_rt.train.decoders.registry import build_decoder
from decipher_rt.train.model.vit import ViTConfig

from .every_kind import ALL, MASK, TISSUE


@pytest.mark.parametrize("patch_shape", [(4, 4, 4), (2, 4, 4)], ids=["cubes", "slabs"])
@pytest.mark.parametrize("name", ["tissue", "strided", "skips", "strided skips"])
def test_the_answer_of_a_segmentation_is_that_of_its_logits(
    name: str, patch_shape: tuple[int, int, int], vit_config: ViTConfig
) -> None:
    torch.manual_seed(8)
    patches = int(np.prod([g // p for g, p in zip(vit_config.grid_shape, patch_shape, strict=True)]))
    encoder = dataclasses.replace(vit_config, patch_shape=patch_shape, token_buckets=(patches,))
    decoder = build_decoder(ALL[name], encoder).eval()
    tokens = torch.stack([torch.randperm(patches)[:40] for _ in range(2)])
    given = torch.randn(2, 40, 48), tokens, torch.zeros(2, 16), torch.rand(2, 1, *vit_config.grid_shape)
    with torch.no_grad():
        decoder.doublings[-1].bias.sub_(decoder.raw(*given).mean(dim=(0, 2, 3, 4)))
        raw = decoder.raw(*given)
        expected = decoder.finish(raw)
        answer = decoder(*given)
        ahead = raw[:, -1] - raw[:, :-1].amax(dim=1)
        decoder.margins[-1] = ahead[ahead > 0].median()
        fewer, lowered = decoder(*given), raw.clone()
    lowered[:, -1] -= decoder.margins[-1]
    assert (fewer != lowered.argmax(dim=1)).float().mean() < 1e-3
    assert (fewer == len(decoder.labels) - 1).sum() < (answer == len(decoder.labels) - 1).sum()
    assert answer.dtype == expected.dtype
    assert answer.shape == expected.shape
    assert len(answer.unique()) == len(decoder.labels)
    assert (answer != expected).float().mean() < 1e-3  # where two logits are equal to the last bits


def test_dropped_patches_are_background(vit_config: ViTConfig) -> None:
    torch.manual_seed(3)
    decoder = build_decoder(TISSUE, vit_config).eval()
    with torch.no_grad():
        decoder.doublings[-1].bias[0] = -100.0  # whatever is decoded is some tissue
        tokens = torch.tensor([[5, 17, 63]])
        answer = decoder(torch.randn(1, 3, 48), tokens, torch.zeros(1, 16))[0]
    kept = (answer > 0).reshape(4, 4, 4, 4, 4, 4).sum(dim=(1, 3, 5)).flatten()
    assert kept.nonzero().flatten().tolist() == [5, 17, 63]
    assert kept[[5, 17, 63]].tolist() == [64, 64, 64]


def test_labels_of_a_mask_have_the_values_that_the_configuration_says(vit_config: ViTConfig) -> None:
    mask = np.random.default_rng(0).integers(0, 6, vit_config.grid_shape, np.uint8)
    known = Known({}, None, "head", tissue=True)
    truth = build_decoder(MASK, vit_config).target(known, mask, np.arange(8))["map"]
    assert np.array_equal(truth, np.where(mask == 4, 1, np.where(mask == 2, 2, 0)))
    by_place = dataclasses.replace(MASK, options={**MASK.options, "values": []})
    truth = build_decoder(by_place, vit_config).target(known, mask, np.arange(8))["map"]
    assert np.array_equal(truth, np.where(mask < 3, mask, 0))


def test_a_label_that_no_mask_has_is_named(vit_config: ViTConfig) -> None:
    """Masks are looked at until every label is found; the simulator's maps are not."""
    seen: list[int] = []

    def masks(*values: int) -> Iterator[np.ndarray]:
        for value in values:
            seen.append(value)
            yield np.full(vit_config.grid_shape, value, np.uint8)

    decoder = build_decoder(MASK, vit_config)
    decoder.check_maps(masks(0, 4, 2, 1))
    assert seen == [0, 4, 2]
    with pytest.raises(
        ValueError, match=r"options.labels holds 'oedema' \(value 2\), which no mask of the train split"
    ):
        decoder.check_maps(masks(0, 4, 1))
    seen.clear()
    build_decoder(TISSUE, vit_config).check_maps(masks(0))
    assert seen == []
