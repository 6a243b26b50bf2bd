"""Views of stored series: the foreground is the runtime's, whatever half precision makes of the threshold."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import tissue_counts
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.views import (
    UNIT_WINDOW,
    ViewConfig,
    draw_movement,
    patches_at,
    ranked_patches,
    to_patches,
    vary_intensities,
)

SPEC = ViTConfig.PRESETS["tiny"].preprocessing


@pytest.mark.parametrize("level", [0.0, 0.1, 0.25, 1 / 3])  # exact in half precision or between two of its numbers
def test_patches_are_ranked_as_the_runtime_ranks_them(level: float) -> None:
    spec = dataclasses.replace(SPEC, tissue_level=level)
    rng = np.random.default_rng(3)
    volume = rng.uniform(-0.2, 1.2, spec.grid_shape).astype(np.float16)
    near = np.float16(level)
    steps = [np.nextafter(near, np.float16(-1)), near, np.nextafter(near, np.float16(1)), np.float16(-0.0)]
    volume[::2] = rng.choice(np.array(steps), volume[::2].shape)
    for seen in (volume, volume[..., ::-1]):
        counts = tissue_counts(Grid(seen.astype(np.float32), UNIT_WINDOW, np.eye(4)), spec)
        ranked, tissue = ranked_patches(seen, spec)
        np.testing.assert_array_equal(ranked, np.argsort(-counts, kind="stable"))
        assert tissue == (counts >= spec.min_tissue * np.prod(spec.patch_shape)).sum()


def test_rows_of_the_table_of_patches_are_had_without_the_table() -> None:
    volume = np.random.default_rng(4).random(SPEC.grid_shape).astype(np.float16)
    tokens = np.array([0, 5, 700, SPEC.patches - 1])
    for seen in (volume, volume[..., ::-1]):
        np.testing.assert_array_equal(patches_at(seen, tokens, SPEC), to_patches(seen, SPEC)[tokens])


def test_a_shift_beyond_the_grid_leaves_air() -> None:
    volume = np.ones((5, 6, 7), np.float16)
    for seed in range(40):
        moved = draw_movement(volume.shape, ViewConfig(shift_voxels=12), np.random.default_rng(seed))(volume)
        shift = np.random.default_rng(seed).integers(-12, 13, size=3)
        assert moved.sum() == np.clip(np.array(volume.shape) - np.abs(shift), 0, None).prod()


STILL = ViewConfig(window=0, gamma=0, noise=0)


def ramp(series: int) -> NDArray[np.float32]:
    return np.tile(np.linspace(-0.5, 1.5, 600, dtype=np.float32), (series, 4, 1))


def test_intensities_that_nothing_varies_are_those_of_the_encoder() -> None:
    varied = vary_intensities(ramp(2), STILL, np.random.default_rng(0))
    np.testing.assert_allclose(varied, ramp(2).clip(0, 1) * 2 - 1, atol=1e-6)


def test_gamma_bends_each_series_by_itself_and_keeps_both_ends() -> None:
    varied = vary_intensities(ramp(3), dataclasses.replace(STILL, gamma=0.5), np.random.default_rng(1))
    assert (varied.min(), varied.max()) == (-1, 1)
    bent = []
    for series in varied:
        np.testing.assert_array_equal(series, series[:1].repeat(4, axis=0))
        inside = slice(160, 440)  # away from both ends
        power = np.log((series[0, inside] + 1) / 2) / np.log(ramp(1)[0, 0, inside])
        np.testing.assert_allclose(power, power.mean(), rtol=1e-4)
        bent.append(float(power.mean()))
    assert len({round(power, 3) for power in bent}) == 3


def test_half_of_the_series_get_noise_of_their_own() -> None:
    flat = np.full((200, 2, 500), 0.5, np.float32)
    varied = vary_intensities(flat, dataclasses.replace(STILL, noise=0.04), np.random.default_rng(2))
    spread = varied.std(axis=(1, 2)) / 2  # the window is 2 wide
    noisy = spread > 0
    assert 70 <= noisy.sum() <= 130
    assert spread.max() <= 0.043
    assert spread[noisy].mean() == pytest.approx(0.02, abs=0.005)
