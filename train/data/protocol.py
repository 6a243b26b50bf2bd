"""Protocols: which sequence with which parameters, and how its field of view lies in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decipher_rt.volume import Acquisition

from . import contrast
from .tissues import INDEX, TissueValues

Sequence = Literal["T1w", "T2w", "PDw", "FLAIR", "T2*w"]
SEQUENCES: tuple[Sequence, ...] = ("T1w", "T2w", "PDw", "FLAIR", "T2*w")
PLANES = ("axial", "coronal", "sagittal")  # their slices follow one another along S, A, R: axes 0, 1, 2


@dataclass(frozen=True)
class Protocol:
    """Parameters of one sequence. Times in ms, angles in degrees; ``family`` selects the signal equation."""

    sequence: Sequence
    family: str
    field_strength_t: float
    tr: float
    te: float
    flip: float
    ti: float = 0.0  # 0 where nothing is inverted
    echo_spacing: float = 0.0
    echoes: int = 0
    fat_suppression: float = 1.0  # what is left of fat's signal
    three_dimensional: bool = False

    def signals(self, tissue: TissueValues) -> NDArray[np.float64]:
        """Signal of every row of ``tissues.RELAXATION``."""
        if self.family == "mprage":
            signal = contrast.mprage(tissue, self.tr, self.te, self.ti, self.flip, self.echo_spacing, self.echoes)
        elif self.family in ("flair", "flair3d"):
            signal = contrast.inversion_recovery_spin_echo(tissue, self.tr, self.te, self.ti)
        elif self.family in ("se", "tse", "tse3d"):
            signal = contrast.spin_echo(tissue, self.tr, self.te)
        else:
            signal = contrast.spoiled_gradient_echo(tissue, self.tr, self.te, self.flip)
        signal = signal.copy()
        signal[[INDEX["fat"], INDEX["marrow"]]] *= self.fat_suppression
        return signal

    def acquisition(self) -> Acquisition:
        """Return what a DICOM header says of it."""
        scanning = {"mprage": "GR\\IR", "flair": "SE\\IR", "flair3d": "SE\\IR", "epi": "EP\\GR"}
        default = "SE" if self.family in ("se", "tse", "tse3d") else "GR"
        return Acquisition(
            modality="MR",
            body_part="HEAD",
            field_strength_t=self.field_strength_t,
            repetition_time_ms=round(self.tr, 2),
            echo_time_ms=round(self.te, 2),
            inversion_time_ms=None if not self.ti else round(self.ti, 1),
            flip_angle_deg=round(self.flip, 1),
            scanning_sequence=scanning.get(self.family, default),
            image_type=("DERIVED", "PRIMARY", "M", "SIMULATED"),
        )


def draw_protocol(rng: np.random.Generator, field_t: float, tissue: TissueValues, sequence: Sequence) -> Protocol:
    """Draw a protocol of one sequence class in the ranges of clinical and research practice."""
    u, high = rng.uniform, field_t > 2
    suppression = float(u(0.03, 0.3))
    if sequence == "T1w":
        family = str(rng.choice(["mprage", "flash2d", "flash3d", "se"], p=[0.46, 0.26, 0.10, 0.18]))
        if family == "mprage":
            ti, spacing = u(800, 1100), u(5.5, 10.0)
            echoes = int(min(u(110, 200), 1.85 * ti / spacing))
            tr = max(u(1500, 3000), ti + echoes * spacing / 2 + 50)
            return Protocol(
                "T1w", "mprage", field_t, tr, u(2, 5), u(7, 12), ti, spacing, echoes, three_dimensional=True
            )
        if family == "flash2d":
            return Protocol("T1w", "flash2d", field_t, u(140, 360), u(2.3, 6), u(60, 90))
        if family == "flash3d":
            left = suppression if rng.random() < 0.2 else 1.0
            return Protocol("T1w", "flash3d", field_t, u(8, 26), u(2, 6), u(16, 32), 0, 0, 0, left, True)
        left = suppression if rng.random() < 0.12 else 1.0
        return Protocol("T1w", "se", field_t, u(380, 720), u(7, 16), 90, 0, 0, 0, left)
    if sequence == "T2w":
        left = suppression if rng.random() < 0.2 else u(0.9, 1.3)
        if rng.random() < 0.2:
            return Protocol("T2w", "tse3d", field_t, u(2200, 4000), u(85, 130), 90, 0, 0, 0, left, True)
        return Protocol("T2w", "tse", field_t, u(2600, 7000), u(78, 130), 90, 0, 0, 0, left)
    if sequence == "PDw":
        left = suppression if rng.random() < 0.3 else u(0.9, 1.2)
        return Protocol("PDw", str(rng.choice(["tse", "se"])), field_t, u(2000, 5000), u(10, 34), 90, 0, 0, 0, left)
    if sequence == "FLAIR":
        volume = bool(rng.random() < 0.35)
        tr, te = (u(4800, 8500), u(80, 125)) if volume else (u(6500, 11000), u(80, 145))
        ti = contrast.null_inversion_time(float(tissue.t1[INDEX["csf"]]), tr, te) * u(0.92, 1.06)
        left = suppression if rng.random() < (0.6 if volume else 0.35) else 1.0
        return Protocol("FLAIR", "flair3d" if volume else "flair", field_t, tr, te, 90, ti, 0, 0, left, volume)
    if rng.random() < 0.62:
        te = u(24, 40) if high else u(28, 60)
        return Protocol("T2*w", "epi", field_t, u(1000, 6000), te, u(60, 90), 0, u(0.45, 0.9), 64, u(0.01, 0.12))
    volume = bool(rng.random() < 0.25)
    if volume:
        return Protocol("T2*w", "gre3d", field_t, u(27, 50), u(18, 30), u(10, 18), 0, 0, 0, 1.0, True)
    return Protocol("T2*w", "gre2d", field_t, u(450, 1100), u(15, 32), u(15, 30))


@dataclass(frozen=True)
class Prescription:
    """Where the field of view lies: a box of voxels whose axes run, as closely as they can, to S, A, R.

    Attributes
    ----------
    shape : voxels along the box's (S, A, R) axes as acquired
    step_mm : distance of voxel centres along them
    slice_axis : 0, 1 or 2: along which the slices follow one another
    thickness_mm : of a slice; less than the step where there are gaps
    phase_axis : along which the phase is encoded
    axes : (3, 3) rows are the unit vectors of the box's S, A, R axes in patient RAS
    centre_mm : of the box in patient RAS
    """

    shape: tuple[int, int, int]
    step_mm: tuple[float, float, float]
    slice_axis: int
    thickness_mm: float
    phase_axis: int
    axes: NDArray[np.float64]
    centre_mm: NDArray[np.float64]

    @property
    def fov_mm(self) -> tuple[float, float, float]:
        """Extent of the box along its (S, A, R) axes."""
        s, a, r = (n * d for n, d in zip(self.shape, self.step_mm, strict=True))
        return s, a, r

    @property
    def plane(self) -> str:
        """Plane of the slices."""
        return PLANES[self.slice_axis]

    def affine_lps_mm(self) -> NDArray[np.float64]:
        """Map (s, a, r) index to LPS millimetres, (4, 4)."""
        affine = np.eye(4)
        affine[:3, :3] = (np.diag([-1.0, -1.0, 1.0]) @ self.axes.T) * np.array(self.step_mm)
        middle = (np.array(self.shape) - 1) / 2
        affine[:3, 3] = np.array([-1.0, -1.0, 1.0]) * self.centre_mm - affine[:3, :3] @ middle
        return affine


def draw_prescription(
    rng: np.random.Generator, protocol: Protocol, head_centre_mm: NDArray[np.float64]
) -> Prescription:
    """Draw plane, resolution, coverage and position of the field of view around a head.

    ``head_centre_mm`` is where the middle of the brain (MNI 0, -18, 8) lies in the patient, RAS.
    """
    u = rng.uniform
    axis = _draw_plane(rng, protocol)
    step, fov = np.zeros(3), np.zeros(3)
    inplane = [i for i in range(3) if i != axis]
    if protocol.family == "epi":
        size = u(185, 262)
        fov[inplane] = size
        step[inplane] = u(1.9, 4.0)
        step[axis], count = _slices(rng, u(2.2, 6.2), u(58, 158))
    elif protocol.three_dimensional:
        step[:] = u(0.8, 1.35)
        step[axis] = step[inplane[0]] * u(0.9, 1.5)
        span = {0: (130, 220), 1: (170, 230), 2: (148, 196)}[axis]
        count = round(u(*span) / step[axis])
        fov[inplane] = [u(225, 280) if i != 2 else u(170, 250) for i in inplane]
    else:
        step[inplane] = u(0.42, 1.2)
        span = {0: (85, 180), 1: (110, 220), 2: (100, 178)}[axis]
        step[axis], count = _slices(rng, u(2.8, 6.8), u(*span))
        fov[inplane] = [u(200, 275) if i != 2 else u(165, 255) for i in inplane]
    fov[axis] = count * step[axis]
    shape = np.maximum(np.round(fov / step), 1).astype(int)
    fov = shape * step
    gap = 0.0 if protocol.three_dimensional else float(rng.choice([0.0, u(0, 0.3)], p=[0.4, 0.6]))
    offset = rng.normal(0, 4.0, 3)  # (S, A, R)
    top = 92.0 - 8.0  # of the head above the middle of the brain, at its mean size
    if fov[0] > 185:  # the operator leaves a little air above the head; the rest goes to face and neck
        offset[0] = top + u(0, 28) - fov[0] / 2
    elif fov[0] > 120:
        offset[0] = top + u(-16, 14) - fov[0] / 2
    else:
        offset[0] = u(-32, 34)
    offset[1] = u(-12, 18) if fov[1] > 205 else u(-8, 8) + (18 if rng.random() < 0.2 else 2)
    oblique = rng.normal(0, 1, 3) * np.array([7.0, 3.0, 3.0]) * (rng.random() < 0.7)
    if axis == 0 and rng.random() < 0.3:
        oblique[0] += u(-25, 12)
    axes = rotation(*oblique)[::-1]  # rows of a rotation in (R, A, S), reversed to (S, A, R)
    centre = head_centre_mm + offset @ axes
    phase = {0: 1, 1: 2, 2: 1}[axis] if rng.random() < 0.75 else inplane[int(rng.integers(2))]
    s, a, r = (int(n) for n in shape)
    return Prescription(
        (s, a, r),
        (float(step[0]), float(step[1]), float(step[2])),
        axis,
        float(step[axis] * (1 - gap)),
        1 if protocol.family == "epi" else phase,
        axes,
        centre,
    )


def rotation(pitch_deg: float, roll_deg: float, yaw_deg: float) -> NDArray[np.float64]:
    """Rotation about R, then A, then S, acting on (R, A, S) vectors."""
    (cp, cr, cy), (sp, sr, sy) = (
        np.cos(np.radians([pitch_deg, roll_deg, yaw_deg])),
        np.sin(np.radians([pitch_deg, roll_deg, yaw_deg])),
    )
    about_r = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_a = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    about_s = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return np.asarray(about_s @ about_a @ about_r)


def _draw_plane(rng: np.random.Generator, protocol: Protocol) -> int:
    chances = {
        "epi": (0.93, 0.04, 0.03),
        "mprage": (0.22, 0.10, 0.68),
        "flash2d": (0.35, 0.15, 0.50),
        "flash3d": (0.45, 0.15, 0.40),
        "tse3d": (0.2, 0.1, 0.7),
        "flair3d": (0.2, 0.1, 0.7),
        "gre2d": (0.85, 0.08, 0.07),
        "gre3d": (0.9, 0.05, 0.05),
    }
    return int(rng.choice(3, p=chances.get(protocol.family, (0.62, 0.18, 0.20))))


def _slices(rng: np.random.Generator, step: float, span: float) -> tuple[float, int]:
    """Return a round slice distance and a whole number of slices."""
    step = round(step * 2) / 2 if rng.random() < 0.6 else round(step, 1)
    return step, max(5, round(span / step))
