"""Tissues of the simulator and their relaxation times at 1.5 T and 3 T, with the source of every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Relaxation:
    """Relaxation times in ms and proton density relative to CSF; each time as (at 1.5 T, at 3 T).

    ``spread`` is the relative standard deviation between subjects and regions that the simulator draws from.
    """

    name: str
    t1_ms: tuple[float, float]
    t2_ms: tuple[float, float]
    t2_star_ms: tuple[float, float]
    density: float
    spread: float
    source: str


_BRAINWEB = "BrainWeb (Kwan 1999, IEEE TMI 18:1085) for density"
_STANISZ = "Stanisz 2005, MRM 54:507"
_GOLD = "Gold 2004, AJR 183:343"
_BAZELAIRE = "de Bazelaire 2004, Radiology 230:652"
_PETERS = "Peters 2007, MRI 25:748 (T2*)"

RELAXATION: tuple[Relaxation, ...] = (
    Relaxation("air", (1000, 1000), (1, 1), (1, 1), 0.0, 0.0, "no signal"),
    # Published T1 of brain depends on the method; between Wansapura (inversion recovery at low resolution) and Stanisz.
    Relaxation(
        "grey", (1000, 1400), (92, 90), (84, 66), 0.86, 0.06, f"Wansapura 1999, JMRI 9:531; {_STANISZ}; {_PETERS}"
    ),
    Relaxation(
        "white", (640, 870), (75, 72), (66, 53), 0.75, 0.06, f"Wansapura 1999, JMRI 9:531; {_STANISZ}; {_PETERS}"
    ),
    # T2* of CSF as voxels of several mm see it, shortened by field gradients and pulsation.
    Relaxation("csf", (4100, 4200), (1900, 1700), (500, 300), 1.0, 0.10, f"Rooney 2007, MRM 57:308 (T1); {_BRAINWEB}"),
    Relaxation(
        "bone", (250, 300), (0.6, 0.5), (0.5, 0.4), 0.12, 0.2, "Du 2014, NMR Biomed 27:1: cortical bone, ultrashort"
    ),
    Relaxation(
        "marrow",
        (288, 365),
        (120, 105),
        (18, 10),
        0.75,
        0.15,
        f"{_GOLD}; trabecular T2* shorter, density less than fat",
    ),
    Relaxation("fat", (310, 375), (110, 100), (45, 30), 0.95, 0.08, f"{_GOLD}; {_BAZELAIRE}"),
    Relaxation("skin", (850, 1000), (35, 32), (18, 14), 0.65, 0.12, "Richard 1991, J Invest Dermatol 97:120: dermis"),
    Relaxation("muscle", (1008, 1412), (44, 42), (32, 26), 0.80, 0.07, f"{_STANISZ}; {_GOLD}"),
    Relaxation(
        "vitreous", (4000, 4200), (1400, 1200), (350, 250), 0.98, 0.08, "as CSF, a little shorter T2 (hyaluronan gel)"
    ),
    Relaxation("gland", (850, 1100), (85, 75), (45, 32), 0.85, 0.12, "mucosa, glands, discs: between muscle and fluid"),
    Relaxation("blood", (1441, 1932), (250, 150), (90, 45), 0.85, 0.2, f"{_STANISZ}; flow scales its density"),
    # Lesion kinds: relative to white matter, from the ranges that the cited reviews give.
    Relaxation("plaque", (1150, 1450), (160, 150), (110, 85), 0.88, 0.12, "MS plaque: Larsson 1988, MRM 7:43"),
    Relaxation("tumour", (1300, 1700), (140, 130), (95, 75), 0.88, 0.15, "glioma: Just 1988, Radiology 169:779"),
    Relaxation("oedema", (1250, 1600), (190, 170), (130, 95), 0.92, 0.12, "vasogenic oedema: Oh 2005, JMRI 21:701"),
    Relaxation(
        "necrosis", (2300, 2700), (500, 420), (200, 150), 0.96, 0.2, "cystic or necrotic core: between oedema and CSF"
    ),
    Relaxation("lacune", (3000, 3300), (900, 800), (250, 180), 0.97, 0.15, "cavity filled with CSF, partial volume"),
    Relaxation(
        "infarct",
        (1350, 1700),
        (180, 165),
        (120, 90),
        0.92,
        0.12,
        "subacute infarct: as oedema of grey and white matter",
    ),
)
TISSUES: tuple[str, ...] = tuple(row.name for row in RELAXATION[:12])
LESION_TISSUES: tuple[str, ...] = tuple(row.name for row in RELAXATION[12:])
INDEX: dict[str, int] = {row.name: i for i, row in enumerate(RELAXATION)}


@dataclass(frozen=True)
class TissueValues:
    """One subject's tissues: arrays over ``RELAXATION``, times in ms."""

    t1: NDArray[np.float64]
    t2: NDArray[np.float64]
    t2_star: NDArray[np.float64]
    density: NDArray[np.float64]


def draw_tissues(rng: np.random.Generator, field_strength_t: float) -> TissueValues:
    """Draw one subject's values at a field strength: T1 and 1/T2* interpolated over log field, then varied."""
    weight = np.log(field_strength_t / 1.5) / np.log(2.0)
    low, high = (np.array([[r.t1_ms[i], r.t2_ms[i], r.t2_star_ms[i]] for r in RELAXATION]) for i in (0, 1))
    times = np.exp(np.log(low) * (1 - weight) + np.log(high) * weight)
    spread = np.array([r.spread for r in RELAXATION])
    # Half of the variation is common to all tissues (temperature, age, calibration of the method), half is their own.
    common = 0.04 * rng.standard_normal((1, 3))
    times = times * np.exp(common + spread[:, None] * np.clip(rng.standard_normal(times.shape), -2, 2))
    density = np.array([r.density for r in RELAXATION]) * (
        1 + 0.4 * spread * np.clip(rng.standard_normal(len(RELAXATION)), -2, 2)
    )
    t1, t2, t2_star = times.T
    t2 = np.minimum(t2, t1)
    return TissueValues(t1, t2, np.minimum(t2_star, 0.95 * t2), density)
