"""Crops are boxes of the foreground of a moved view, at their own place in mm, with tokens dropped."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from decipher_rt.manifest import Preprocessing
from decipher_rt.train.model.vit import ViTConfig, patch_positions
from decipher_rt.train.ssl.config import CropConfig
from decipher_rt.train.ssl.crops import CropBatch, box_crop, crop_batch, draw_sizes, patch_centres
from decipher_rt.train.ssl.masks import plan_blocks
from decipher_rt.train.views import ViewConfig

PLAIN = ViewConfig(shift_voxels=0, flip=0.0, window=0.0, gamma=0.0, noise=0.0)
CROPS = CropConfig(local_crops=3, global_tokens=(20, 40), local_tokens=(5, 10))


def draw(
    volumes: list[np.ndarray],
    encoder: ViTConfig,
    *,
    seed: int = 0,
    sizes: tuple[int, int] = (40, 8),
    augment: ViewConfig = PLAIN,
    crops: CropConfig = CROPS,
) -> CropBatch:
    plan = plan_blocks(2, len(volumes), 0.5, (0.2, 0.75), np.random.default_rng(seed))
    rngs = [np.random.default_rng([seed, i]) for i in range(len(volumes))]
    return crop_batch(volumes, rngs, sizes, plan, encoder.preprocessing, crops, augment)


@pytest.fixture
def marked(encoder: ViTConfig) -> np.ndarray:
    """Tissue in the half of low d; each voxel's value says where it is."""
    volume = np.zeros(encoder.grid_shape, np.float16)
    volume[:12] = np.linspace(0.2, 0.9, 12 * 24 * 24).reshape(12, 24, 24)
    return volume


def test_shapes_and_types(encoder: ViTConfig, marked: np.ndarray) -> None:
    batch = draw([marked, marked, marked], encoder)
    assert batch.global_patches.shape == (2, 3, 40, 64)
    assert batch.global_tokens.shape == batch.masks.shape == (2, 3, 40)
    assert batch.local_patches.shape == (3, 3, 8, 64)
    assert batch.local_tokens.shape == (3, 3, 8)
    assert batch.global_patches.dtype is batch.local_patches.dtype is torch.float32
    assert batch.global_tokens.dtype is torch.int64
    assert batch.masks.dtype is torch.bool


def test_patches_are_the_voxels_at_their_tokens(encoder: ViTConfig, marked: np.ndarray) -> None:
    batch = draw([marked], encoder)
    pairs = ((batch.global_patches, batch.global_tokens), (batch.local_patches, batch.local_tokens))
    for patches, tokens in pairs:
        for crop in range(len(tokens)):
            for patch, token in zip(patches[crop, 0], tokens[crop, 0].tolist(), strict=True):
                d, h, w = (4 * int(i) for i in np.unravel_index(token, (6, 6, 6)))
                box = marked[d : d + 4, h : h + 4, w : w + 4].astype(np.float32)
                assert np.allclose(patch.numpy(), box.ravel() * 2 - 1, atol=1e-6)


def test_tokens_are_foreground_without_repetition(encoder: ViTConfig, marked: np.ndarray) -> None:
    for seed in range(10):
        batch = draw([marked], encoder, seed=seed)
        for tokens in (*batch.global_tokens[:, 0], *batch.local_tokens[:, 0]):
            assert (tokens.diff() > 0).all()
            assert (tokens < 108).all()  # d below 12 voxels: 3 x 6 x 6 patches


def test_where_foreground_is_short_the_next_best_patches_fill_up(encoder: ViTConfig) -> None:
    volume = np.zeros(encoder.grid_shape, np.float16)
    volume[:4, :4, :16] = 0.5  # four patches
    batch = draw([volume, np.zeros_like(volume)], encoder)
    for tokens in batch.global_tokens[:, 0]:
        assert set(range(4)) <= set(tokens.tolist())
    assert batch.global_tokens.shape == (2, 2, 40)


@pytest.mark.parametrize("count", [1, 5, 27, 64, 216])
def test_a_crop_is_a_box(encoder: ViTConfig, count: int) -> None:
    """In a full grid, no patch that is left out lies deeper in the box than one that is in it."""
    centres = patch_centres(encoder.preprocessing)
    for seed in range(20):
        chosen = box_crop(centres, count, np.random.default_rng(seed), stretch=1.0)
        assert len(set(chosen.tolist())) == count
        low, high = centres[chosen].min(axis=0), centres[chosen].max(axis=0)
        # Without its outermost layer the box is whole.
        inner = ((centres > low + 1) & (centres < high - 1)).all(axis=1)
        assert set(np.flatnonzero(inner)) <= set(chosen.tolist())
        box = (((high - low) / 32.0) + 1).prod()
        assert count <= box <= max(8 * count, 8)


def test_boxes_lie_everywhere_and_have_all_proportions(encoder: ViTConfig) -> None:
    centres = patch_centres(encoder.preprocessing)
    crops = [centres[box_crop(centres, 27, np.random.default_rng(seed))] for seed in range(200)]
    middles = np.array([crop.mean(axis=0) for crop in crops])
    assert np.abs(middles.mean(axis=0) - 96.0).max() < 10  # of the grid of 192 mm
    assert middles.std(axis=0).min() > 20
    extents = np.array([np.ptp(crop, axis=0) for crop in crops])
    assert len(np.unique(extents, axis=0)) > 5


def test_local_crops_are_smaller_in_mm(encoder: ViTConfig) -> None:
    volume = np.full(encoder.grid_shape, 0.5, np.float16)
    centres = torch.from_numpy(patch_centres(encoder.preprocessing))
    crops = dataclasses.replace(CROPS, global_share=(0.5, 1.0), local_share=(0.03, 0.1))

    def extent(tokens: torch.Tensor) -> float:
        places = centres[tokens.flatten(0, 1)]
        return float((places.amax(dim=1) - places.amin(dim=1)).mean())

    batch = draw([volume] * 10, encoder, crops=crops)
    assert extent(batch.local_tokens) < 0.65 * extent(batch.global_tokens)


def test_a_share_of_the_foreground_is_drawn_and_then_dropped_to_the_tokens(encoder: ViTConfig) -> None:
    """Half of the 216 patches: 40 tokens spread over a box of about 108, not the 40 nearest."""
    volume = np.full(encoder.grid_shape, 0.5, np.float16)
    crops = dataclasses.replace(CROPS, global_share=(0.5, 0.5))
    centres = torch.from_numpy(patch_centres(encoder.preprocessing))
    batch = draw([volume] * 20, encoder, crops=crops)
    places = centres[batch.global_tokens.flatten(0, 1)]
    boxes = ((places.amax(dim=1) - places.amin(dim=1)) / 32.0 + 1).prod(dim=1)
    assert 80 < float(boxes.mean()) < 180


def test_flipped_and_shifted_views_move_voxels_and_places_alike(encoder: ViTConfig) -> None:
    """A bright block is found at the place that its shift and mirror say, which the position code is of."""
    volume = np.zeros(encoder.grid_shape, np.float16)
    volume[8:16, 8:16, 4:8] = 1.0
    moving = dataclasses.replace(PLAIN, shift_voxels=4, flip=0.5)
    seen = set()
    for seed in range(40):
        batch = draw([volume], encoder, seed=seed, augment=moving)
        for patches, tokens in zip(batch.global_patches[:, 0], batch.global_tokens[:, 0], strict=True):
            bright = np.zeros((6, 6, 6), np.float32)
            bright.flat[tokens.numpy()] = (patches > 0.5).sum(dim=1)
            assert bright.sum() == 8 * 8 * 4
            w = float((np.arange(6) * 4 * bright.sum(axis=(0, 1))).sum() / bright.sum())
            seen.add("left" if w < 10 else "right")
    assert seen == {"left", "right"}


def test_positions_are_those_of_the_grid_in_mm(encoder: ViTConfig, marked: np.ndarray) -> None:
    """What the encoder adds to a crop's token is the code that the whole grid has there, not one of the crop's own."""
    from decipher_rt.train.model.vit import ViT

    torch.manual_seed(0)
    network = ViT(encoder)
    batch = draw([marked], encoder)
    local = network.project(batch.local_patches[0], batch.local_tokens[0])
    voxels = network.patch_embed(batch.local_patches[0])
    assert torch.allclose(local - voxels, patch_positions(encoder)[batch.local_tokens[0]], atol=1e-5)


def test_every_series_draws_by_its_own_place(encoder: ViTConfig, marked: np.ndarray) -> None:
    both = draw([marked, marked], encoder)
    plan = plan_blocks(2, 2, 0.5, (0.2, 0.75), np.random.default_rng(0)).share(1, 2)
    second = crop_batch([marked], [np.random.default_rng([0, 1])], (40, 8), plan, encoder.preprocessing, CROPS, PLAIN)
    for field in dataclasses.fields(both):
        assert torch.equal(getattr(both, field.name)[:, 1:], getattr(second, field.name)), field.name
    assert not torch.equal(both.global_tokens[:, 0], both.global_tokens[:, 1])


def test_sizes_are_drawn_within_their_range() -> None:
    drawn = np.array([draw_sizes(CROPS, np.random.default_rng([1, s])) for s in range(500)])
    assert drawn.min(axis=0).tolist() == [20, 5]
    assert drawn.max(axis=0).tolist() == [40, 10]


def test_intensities_differ_between_crops_and_places_do_not(encoder: ViTConfig, marked: np.ndarray) -> None:
    vivid = dataclasses.replace(PLAIN, window=0.1, gamma=0.3)
    batch = draw([marked], encoder, augment=vivid, sizes=(108, 8))  # all of the foreground
    assert torch.equal(batch.global_tokens[0], batch.global_tokens[1])
    assert (batch.global_patches[0] - batch.global_patches[1]).abs().mean() > 0.01


def test_masks_are_as_planned(encoder: ViTConfig, marked: np.ndarray) -> None:
    batch = draw([marked] * 8, encoder)
    expected = plan_blocks(2, 8, 0.5, (0.2, 0.75), np.random.default_rng(0)).counts(40)
    assert np.array_equal(batch.masks.sum(dim=2).numpy(), expected)


def test_thick_patches_are_measured_in_mm() -> None:
    """Patches of 8 x 16 x 16 mm: a crop is as long in mm along each axis, not in patches."""
    spec = Preprocessing((64, 64, 64), (2.0, 2.0, 2.0), (4, 8, 8), (1024,))
    centres = patch_centres(spec)
    extents = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        chosen = centres[box_crop(centres, 64, rng, stretch=1.0)]
        extents.append(np.ptp(chosen, axis=0) + np.array([8, 16, 16]))
    d, h, w = np.mean(extents, axis=0)
    assert d == pytest.approx(h, rel=0.15)
    assert h == pytest.approx(w, rel=0.1)
