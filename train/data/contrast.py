"""Signal equations: what tissue of T1, T2, T2* and density gives in each sequence. Times in ms, angles in degrees.

All are magnitudes relative to a fully relaxed, fully sampled density of 1. Magnetisation transfer is ignored.
Source of the closed forms: Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004, chapters 14 and 17; MPRAGE:
Deichmann 2000, NeuroImage 12:112.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tissues import TissueValues

A = NDArray[np.float64]


def spin_echo(tissue: TissueValues, tr: float, te: float) -> A:
    """Spin echo with a 90-180 pair; for a turbo spin echo ``te`` is the effective one."""
    recovery = 1 - 2 * np.exp(-(tr - te / 2) / tissue.t1) + np.exp(-tr / tissue.t1)
    return np.abs(tissue.density * recovery * np.exp(-te / tissue.t2))


def spoiled_gradient_echo(tissue: TissueValues, tr: float, te: float, flip_deg: float) -> A:
    """Spoiled gradient echo in the steady state (Ernst)."""
    e1, flip = np.exp(-tr / tissue.t1), np.radians(flip_deg)
    steady = np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1)
    return np.abs(tissue.density * steady * np.exp(-te / tissue.t2_star))


def inversion_recovery_spin_echo(tissue: TissueValues, tr: float, te: float, ti: float) -> A:
    """Inversion recovery spin echo, magnitude reconstruction: FLAIR where ``ti`` nulls CSF."""
    t1 = tissue.t1
    recovery = 1 - 2 * np.exp(-ti / t1) + 2 * np.exp(-(tr - te / 2) / t1) - np.exp(-tr / t1)
    return np.abs(tissue.density * recovery * np.exp(-te / tissue.t2))


def mprage(
    tissue: TissueValues, tr: float, te: float, ti: float, flip_deg: float, echo_spacing: float, echoes: int
) -> A:
    """Magnetisation-prepared rapid gradient echo, magnitude at the centre of the echo train.

    ``tr`` runs from inversion to inversion, ``ti`` from inversion to the middle of ``echoes`` pulses of ``flip_deg``,
    ``echo_spacing`` apart. The magnetisation just before the inversion is that of the steady state.
    """
    train = echoes * echo_spacing
    before, after = ti - train / 2, tr - ti - train / 2
    if before < 0 or after < 0:
        raise ValueError(f"a train of {train:.0f} ms does not fit around TI {ti:.0f} within TR {tr:.0f}")
    t1, flip = tissue.t1, np.radians(flip_deg)
    rate = 1 / t1 - np.log(np.cos(flip)) / echo_spacing  # apparent 1/T1 under the pulses
    level = (1 - np.exp(-echo_spacing / t1)) / (1 - np.exp(-echo_spacing * rate))
    e_before, e_train, e_after = np.exp(-before / t1), np.exp(-train * rate), np.exp(-after / t1)
    # Longitudinal magnetisation is linear in its value m before the inversion: m -> offset - slope * m.
    at_train = 1 - e_before  # minus m * e_before
    at_end = level + (at_train - level) * e_train
    offset = 1 + (at_end - 1) * e_after
    m = offset / (1 + e_before * e_train * e_after)
    start = 1 - (1 + m) * e_before
    centre = level + (start - level) * np.exp(-train / 2 * rate)
    return np.abs(tissue.density * centre * np.sin(flip) * np.exp(-te / tissue.t2_star))


def null_inversion_time(t1: float, tr: float, te: float) -> float:
    """Inversion time at which `inversion_recovery_spin_echo` nulls ``t1``."""
    rest = 1 + 2 * np.exp(-(tr - te / 2) / t1) - np.exp(-tr / t1)
    return float(-t1 * np.log(rest / 2))
