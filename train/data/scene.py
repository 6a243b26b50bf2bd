"""A scene: everything that is drawn of one examination of a head before any voxel is computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import Anatomy
from .lesions import LesionPlan, draw_lesions
from .protocol import SEQUENCES, Prescription, Protocol, draw_prescription, draw_protocol
from .subject import Subject, draw_subject
from .tissues import TissueValues, draw_tissues


@dataclass(frozen=True)
class Look:
    """What scanner and operator add.

    Attributes
    ----------
    snr : of white matter in an acquired voxel
    background : "noise", "masked" (air is 0) or "quiet" (noise outside is filtered)
    taper : filter of k-space, 0 (ringing) to 1 (Hann)
    ghost, ghost_shift : strength and displacement, as a share of the field of view, of a ghost
    shading_seed : of the receive field
    scale : stored value of white matter
    wrap : what lies beyond the field of view folds in along the phase axis
    removed : "nothing", "face" or "scalp"
    sharpness : exponent on tissue fractions
    brightness : factors on the signal of fat, marrow, blood, skin
    """

    snr: float
    background: str
    taper: float
    ghost: float
    ghost_shift: float
    shading_seed: int
    scale: float
    wrap: bool
    removed: str
    sharpness: float
    brightness: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """One examination, independent of the lattice it is computed on."""

    seed: int
    subject: Subject
    tissues: TissueValues
    protocol: Protocol
    prescription: Prescription
    lesions: tuple[LesionPlan, ...]
    look: Look


def draw_scene(seed: int, anatomy: Anatomy) -> Scene:
    """Draw a scene; the same seed and anatomy give the same scene."""
    rng = np.random.default_rng([seed, 0x5CE2E])
    subject = draw_subject(rng, len(anatomy.heads))
    field = float(rng.choice([1.5, 3.0, rng.choice([1.0, 1.16, 2.89])], p=[0.45, 0.5, 0.05]))
    tissues = draw_tissues(rng, field)
    sequence = SEQUENCES[int(rng.choice(5, p=[0.26, 0.19, 0.13, 0.19, 0.23]))]
    protocol = draw_protocol(rng, field, tissues, sequence)
    prescription = draw_prescription(rng, protocol, subject.offset)
    lesions = draw_lesions(rng, anatomy.heads[subject.head].coarse)
    return Scene(seed, subject, tissues, protocol, prescription, lesions, _draw_look(rng, protocol))


def _draw_look(rng: np.random.Generator, protocol: Protocol) -> Look:
    u = rng.uniform
    echo_planar = protocol.family == "epi"
    low, high = (25.0, 160.0) if echo_planar else (14.0, 130.0)
    ghost, shift = 0.0, 0.5
    if echo_planar and rng.random() < 0.7:
        ghost = u(0.01, 0.07)
    elif rng.random() < 0.12:
        ghost, shift = u(0.02, 0.12), u(0.05, 0.6)
    removed = str(rng.choice(["nothing", "face", "scalp"], p=[0.90, 0.05, 0.05]))
    wrap = bool(rng.random() < 0.12) and not echo_planar
    inflow = 2.2 if protocol.family in ("flash2d", "flash3d", "gre3d") else 1.0
    # Selective water excitation and dephasing along the train leave less of fat in MPRAGE than the equation says.
    fat = u(0.35, 0.9) if protocol.family == "mprage" else u(0.65, 1.1)
    return Look(
        snr=float(np.exp(u(np.log(low), np.log(high)))),
        background=str(rng.choice(["noise", "masked", "quiet"], p=[0.6, 0.15, 0.25])),
        taper=float(rng.choice([0.0, u(0.2, 1.0)])),
        ghost=float(ghost),
        ghost_shift=float(shift),
        shading_seed=int(rng.integers(2**31)),
        scale=float(np.exp(u(np.log(120), np.log(4000)))),
        wrap=wrap,
        removed=removed,
        sharpness=float(u(0.9, 1.8)),
        brightness=(fat, u(0.45, 1.0), u(0.0, inflow), u(0.7, 1.1)),
    )
