"""Noise, truncation, folding and interpolation against distributions and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from decipher_rt.train.data import acquisition as acq
from decipher_rt.train.data.susceptibility import CHI_TISSUE_TO_AIR_PPM, field_shift_ppm

SAMPLES = 200_000


@pytest.mark.parametrize("signal", [0.0, 1.0, 2.0, 6.0])
def test_noise_of_acquired_voxels_is_rician(signal):
    sigma = 3.0
    generator = torch.Generator().manual_seed(1)
    noisy = acq.magnitude_noise(torch.full((SAMPLES,), signal * sigma), sigma, 1.0, generator).numpy()
    assert stats.kstest(noisy[:20_000], stats.rice(b=signal, scale=sigma).cdf).pvalue > 1e-3


@pytest.mark.parametrize("signal", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_noise_of_averaged_voxels_keeps_mean_and_share_of_variance(signal):
    sigma, share = 2.0, 0.1
    generator = torch.Generator().manual_seed(2)
    noisy = acq.magnitude_noise(torch.full((SAMPLES,), signal * sigma), sigma, share, generator).numpy()
    rice = stats.rice(b=signal, scale=sigma)
    assert noisy.mean() == pytest.approx(rice.mean(), rel=0.02)
    assert noisy.var() == pytest.approx(share * rice.var(), rel=0.15)


@pytest.mark.parametrize("n", [32, 33])
def test_truncation_keeps_low_frequencies_and_removes_high_ones(n):
    step, parts = 3.75, 3
    centres = acq.centred(n, step)
    fine = acq.centred(n * parts, step / parts)
    matrix = acq.truncation(centres, fine, n, step, taper=0.0)
    for cycles in (0, 1, 7, n // 2 - 1):
        wave = 2 * np.pi * cycles / (n * step)
        np.testing.assert_allclose(matrix @ np.cos(wave * fine + 0.3), np.cos(wave * centres + 0.3), atol=1e-9)
    beyond = 2 * np.pi * (n // 2 + 3) / (n * step)
    np.testing.assert_allclose(matrix @ np.cos(beyond * fine), 0, atol=1e-9)


def test_truncation_of_an_edge_rings_by_nine_percent():
    n, parts = 64, 5
    fine = acq.centred(n * parts, 1 / parts)
    edge = (np.abs(fine) < n / 4).astype(float)
    rung = acq.truncation(fine, fine, n, 1.0, taper=0.0) @ edge
    assert rung.max() == pytest.approx(1.0895, abs=0.01)  # Gibbs: (Si(pi) / pi + 1/2) of a unit step
    filtered = acq.truncation(fine, fine, n, 1.0, taper=1.0) @ edge
    assert filtered.max() < 1.02


def test_folding_equals_modular_addition():
    rng = np.random.default_rng(0)
    image = rng.random((3, 30, 2)).astype(np.float32)
    beyond, size = 5, 20
    expected = np.zeros((3, size, 2), np.float32)
    for i in range(30):
        expected[:, (i - beyond) % size] += image[:, i]
    np.testing.assert_allclose(acq.fold(torch.from_numpy(image), 1, beyond).numpy(), expected, rtol=1e-6)


def test_separable_interpolation_equals_scipy():
    rng = np.random.default_rng(0)
    coarse = rng.random((5, 6, 7)).astype(np.float32)
    controls = [np.linspace(-10, 10, n) for n in coarse.shape]
    positions = [np.sort(rng.uniform(-10, 10, n)) for n in (9, 11, 8)]
    matrices = tuple(acq.hat_matrix(c, p) for c, p in zip(controls, positions, strict=True))
    index = [(p + 10) / 20 * (n - 1) for p, n in zip(positions, coarse.shape, strict=True)]
    expected = ndimage.map_coordinates(coarse, np.meshgrid(*index, indexing="ij"), order=1)
    np.testing.assert_allclose(acq.separable(torch.from_numpy(coarse), matrices).numpy(), expected, atol=1e-5)
    four = torch.from_numpy(np.stack([coarse, 2 * coarse], -1))
    np.testing.assert_allclose(acq.separable(four, matrices).numpy()[..., 1], 2 * expected, atol=1e-5)


def test_field_of_an_air_bubble_is_a_dipole_but_for_the_shim():
    n, radius = 64, 8.0
    z, y, x = np.meshgrid(*[np.arange(n) - n / 2 + 0.5] * 3, indexing="ij")
    r = np.sqrt(x**2 + y**2 + z**2)
    both = []
    for size in (radius, 0.0):  # the difference of two boxes of tissue is the bubble alone
        air = np.clip(0.5 + size - r, 0, 1).astype(np.float32) if size else np.zeros_like(r, np.float32)
        both.append(field_shift_ppm(air).astype(np.float64))
    found = both[0] - both[1]
    expected = -CHI_TISSUE_TO_AIR_PPM / 3 * (radius / r) ** 3 * (3 * (z / r) ** 2 - 1)
    shell = (r > radius + 3) & (r < 24)
    polynomial = np.stack([np.ones_like(r), x, y, z, x**2, y**2, z**2], -1)[shell]
    rest = found[shell] - expected[shell]
    weights, *_ = np.linalg.lstsq(polynomial, rest, rcond=None)
    assert np.abs(rest - polynomial @ weights).max() < 0.05 * np.abs(expected[shell]).max()
