"""Signal equations against limits, optima and a pulse-by-pulse simulation."""

from __future__ import annotations

import numpy as np
import pytest

from decipher_rt.train.data import contrast
from decipher_rt.train.data.tissues import INDEX, RELAXATION, TissueValues, draw_tissues

T1, T2, T2_STAR = (
    np.array([300.0, 800.0, 1400.0, 4200.0]),
    np.array([60.0, 70.0, 90.0, 1800.0]),
    np.array([20.0, 50.0, 60.0, 300.0]),
)
DENSITY = np.array([0.9, 0.7, 0.85, 1.0])
TISSUE = TissueValues(T1, T2, T2_STAR, DENSITY)


def test_spin_echo_with_long_tr_and_short_te_shows_density():
    np.testing.assert_allclose(contrast.spin_echo(TISSUE, 1e6, 1e-3), DENSITY, rtol=1e-4)


def test_spin_echo_decays_with_t2():
    early, late = (contrast.spin_echo(TISSUE, 1e6, te) for te in (20.0, 80.0))
    np.testing.assert_allclose(-60.0 / np.log(late / early), T2, rtol=1e-3)


def test_gradient_echo_is_largest_at_the_ernst_angle():
    tr = 250.0
    flips = np.linspace(1, 179, 1781)
    signals = np.stack([contrast.spoiled_gradient_echo(TISSUE, tr, 3.0, f) for f in flips])
    ernst = np.degrees(np.arccos(np.exp(-tr / T1)))
    np.testing.assert_allclose(flips[signals.argmax(0)], ernst, atol=0.1)


def test_gradient_echo_at_90_degrees_is_saturation_recovery():
    expected = DENSITY * (1 - np.exp(-500 / T1)) * np.exp(-5 / T2_STAR)
    np.testing.assert_allclose(contrast.spoiled_gradient_echo(TISSUE, 500, 5, 90), expected, rtol=1e-12)


def test_inversion_nulls_at_t1_ln2_for_long_tr():
    for i, t1 in enumerate(T1):
        signal = contrast.inversion_recovery_spin_echo(TISSUE, 1e7, 10, t1 * np.log(2))
        assert signal[i] < 1e-9
        assert signal.max() > 0.05


def test_null_inversion_time_nulls_csf_at_a_real_tr():
    ti = contrast.null_inversion_time(4200.0, 9000.0, 120.0)
    signal = contrast.inversion_recovery_spin_echo(TISSUE, 9000.0, 120.0, ti)
    assert signal[3] < 1e-12
    assert 1500 < ti < 4200 * np.log(2)  # shorter than at infinite TR


@pytest.mark.parametrize(
    ("tr", "ti", "flip", "spacing", "echoes"), [(2300, 900, 9, 7.1, 176), (2000, 1000, 8, 9.0, 128)]
)
def test_mprage_equals_a_simulation_pulse_by_pulse(tr, ti, flip, spacing, echoes):
    te, train = 3.0, echoes * spacing
    magnetisation = np.ones_like(T1)
    for _ in range(60):  # repetitions to the steady state
        magnetisation = -magnetisation
        magnetisation = 1 - (1 - magnetisation) * np.exp(-(ti - train / 2) / T1)
        for pulse in range(echoes):
            if pulse == echoes // 2:
                centre = magnetisation.copy()
            magnetisation = magnetisation * np.cos(np.radians(flip))
            magnetisation = 1 - (1 - magnetisation) * np.exp(-spacing / T1)
        magnetisation = 1 - (1 - magnetisation) * np.exp(-(tr - ti - train / 2) / T1)
    expected = np.abs(DENSITY * centre * np.sin(np.radians(flip)) * np.exp(-te / T2_STAR))
    np.testing.assert_allclose(contrast.mprage(TISSUE, tr, te, ti, flip, spacing, echoes), expected, rtol=1e-6)


def test_mprage_refuses_a_train_that_does_not_fit():
    with pytest.raises(ValueError, match="does not fit"):
        contrast.mprage(TISSUE, 2000, 3, 300, 9, 8.0, 200)


@pytest.mark.parametrize("field", [1.0, 1.5, 3.0])
def test_drawn_tissues_are_physical_and_ordered(field):
    for seed in range(20):
        tissue = draw_tissues(np.random.default_rng(seed), field)
        assert (tissue.t2_star < tissue.t2).all()
        assert (tissue.t2 <= tissue.t1).all()
        order = [tissue.t1[INDEX[name]] for name in ("fat", "white", "grey", "csf")]
        assert order == sorted(order)


def test_t1_grows_with_field_and_every_row_has_a_source():
    for row in RELAXATION:
        assert row.t1_ms[0] <= row.t1_ms[1]
        assert row.source
