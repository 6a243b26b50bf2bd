"""One subject: which head, how it lies and is deformed, and its ventricles. Maps patient millimetres to MNI ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .protocol import rotation

BRAIN_CENTRE = np.array([0.0, -18.0, 8.0])  # MNI, RAS
ELASTIC_LOW = np.array([-110.0, -145.0, -210.0])  # region over which displacements are drawn, MNI RAS
ELASTIC_HIGH = np.array([110.0, 142.0, 125.0])
# Course of the right lateral ventricle in the template, from the trigone to the frontal horn: (R, A, S) in mm.
VENTRICLE = np.array([(27, -46, 8), (16, -31, 20), (11, -14.5, 23), (7, 2, 16), (6, 15, 10), (12, 25, 6)], np.float64)
VENTRICLE_REACH_MM = 10.0  # over which its widening fades, across and beyond its ends


@dataclass(frozen=True)
class Subject:
    """How one head differs from its base anatomy.

    Attributes
    ----------
    head : index into the anatomy's heads
    matrix, offset : MNI = matrix @ (patient - offset) + BRAIN_CENTRE, before the elastic part; mm, RAS
    displacements : coarse and fine displacement lattices, (3, s, a, r) in mm each, over ELASTIC_LOW..HIGH
    ventricles : how far the ventricles are enlarged: 0 none, 0.5 strongly, negative narrow
    atrophy : factor on the CSF of the sulci, 1 for none
    """

    head: int
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    displacements: tuple[NDArray[np.float32], NDArray[np.float32]]
    ventricles: float
    atrophy: float

    def to_mni(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map patient points (N, 3) RAS mm to MNI RAS mm."""
        mni = (points - self.offset) @ self.matrix.T + BRAIN_CENTRE
        normalised = 2 * (mni - ELASTIC_LOW) / (ELASTIC_HIGH - ELASTIC_LOW) - 1
        where = torch.from_numpy(normalised.astype(np.float32)).view(1, 1, 1, -1, 3)
        moved = mni.copy()
        for lattice in self.displacements:
            values = torch.nn.functional.grid_sample(
                torch.from_numpy(lattice)[None], where, padding_mode="border", align_corners=True
            )
            moved += values.view(3, -1).T.numpy()
        return moved - self.ventricles * _towards_ventricles(moved)


def _towards_ventricles(mni: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors from the courses of both lateral ventricles to points (N, 3), fading with distance.

    Subtracting a share of them shows at each point what lies nearer to the ventricle: it is widened.
    """
    y = mni[:, 1]
    beyond = np.maximum(0, np.maximum(VENTRICLE[0, 1] - y, y - VENTRICLE[-1, 1]))
    x, z = (np.interp(y, VENTRICLE[:, 1], VENTRICLE[:, i]) for i in (0, 2))
    out = np.zeros_like(mni)
    for side in (-1, 1):
        across, up = mni[:, 0] - side * x, mni[:, 2] - z
        weight = np.exp(-0.5 * (across**2 + up**2 + beyond**2) / VENTRICLE_REACH_MM**2)
        out[:, 0] += weight * across
        out[:, 2] += weight * up
    return out


def draw_subject(rng: np.random.Generator, heads: int) -> Subject:
    """Draw a subject. MNI heads are larger than the mean: patient sizes are 0.85 to 1.02 of them."""
    size = 1 / np.clip(rng.normal(0.935, 0.035), 0.84, 1.03)
    stretch = np.diag(size * np.exp(rng.normal(0, 0.03, 3)))
    shear = np.eye(3) + np.triu(rng.normal(0, 0.015, (3, 3)), 1)
    tilt = rng.normal(0, 1, 3) * np.array([8.0, 3.5, 5.0])
    if rng.random() < 0.06:  # head turned in the coil, as lying on one side does
        tilt[2] += rng.uniform(-28, 28)
    displacements = []
    for spacing, spread in ((42.0, 3.2), (18.0, 0.9)):
        sizes = np.ceil((ELASTIC_HIGH - ELASTIC_LOW)[::-1] / spacing).astype(int) + 1
        displacements.append((rng.uniform(0.5, 1.3) * spread * rng.standard_normal((3, *sizes))).astype(np.float32))
    enlarged = float(rng.choice([rng.uniform(-0.25, 0.15), rng.uniform(0.2, 0.5)], p=[0.75, 0.25]))
    return Subject(
        head=int(rng.integers(heads)),
        matrix=stretch @ shear @ rotation(*tilt),
        offset=rng.normal(0, 1, 3) * np.array([6.0, 18.0, 12.0]),
        displacements=(displacements[0], displacements[1]),
        ventricles=enlarged,
        atrophy=float(np.clip(rng.normal(1.0 + 0.6 * max(enlarged, 0), 0.2), 0.6, 1.7)),
    )
