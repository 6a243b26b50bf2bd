"""From an image in MNI space to an acquired one: sampling, slice profile, k-space truncation, coil, noise, artefacts.

Everything that is separable (interpolation of smooth fields, slice profiles, truncation, resampling) is one small
matrix per axis; the only gather is the sampling of the base image at the deformed positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .anatomy import Map
from .protocol import Prescription
from .subject import Subject

GAMMA_HZ_PER_PPM_T = 42.577
CONTROL_MM = 8.0  # distance of the points at which smooth fields are computed before they are interpolated


@dataclass(frozen=True)
class Axis:
    """One axis of the sampling lattice.

    Attributes
    ----------
    positions_mm : of the lattice points, from the middle of the field of view
    pool : (n, lattice) matrix that makes acquired voxels of lattice points, or None where they are the same
    voxels : number of acquired (or already averaged) voxels n
    step_mm : their distance
    share : variance of noise that is left by averaging acquired voxels to these
    """

    positions_mm: NDArray[np.float64]
    pool: NDArray[np.float32] | None
    voxels: int
    step_mm: float
    share: float


def lattice(
    prescription: Prescription, axis: int, lattice_mm: float, grid_mm: float | None, grid_size: int, taper: float
) -> Axis:
    """Lay out the lattice along one axis.

    Parameters
    ----------
    lattice_mm : largest distance of lattice points within an acquired voxel
    grid_mm, grid_size : spacing and size of the training grid. Acquired voxels finer than it are averaged at once: the
        lattice points are then the grid's. ``None`` for the native matrix.
    taper : 0 for a plain truncation of k-space (ringing) to 1 for a Hann filter
    """
    n, step = prescription.shape[axis], prescription.step_mm[axis]
    if grid_mm is not None and step < grid_mm:
        count = max(1, int(np.floor(n * step / grid_mm + 0.501)))
        if count > grid_size and (count - grid_size) % 2:
            count -= 1
        positions = centred(count, grid_mm)
        return Axis(positions, None, count, grid_mm, min(1.0, 2 * step / (3 * grid_mm)))
    centres = centred(n, step)
    width = prescription.thickness_mm if axis == prescription.slice_axis else step
    parts = max(1, int(np.ceil(width / lattice_mm)))
    offsets = width * ((np.arange(parts) + 0.5) / parts - 0.5)
    positions = (centres[:, None] + offsets).ravel()
    if parts == 1:
        return Axis(positions, None, n, step, 1.0)
    if axis == prescription.slice_axis:
        # Excited profiles have soft shoulders.
        weights = 1 - 0.35 * (np.abs(offsets) / (width / 2)) ** 2
        pool = np.kron(np.eye(n), weights / weights.sum())
    else:
        pool = truncation(centres, positions, n, step, taper)
    return Axis(positions, pool.astype(np.float32), n, step, 1.0)


def truncation(
    centres: NDArray[np.float64], positions: NDArray[np.float64], n: int, step: float, taper: float
) -> NDArray[np.float64]:
    """Matrix of k-space truncation: what n encoded frequencies of a field of view n * step make of finer points.

    A row is the periodic sinc (Dirichlet kernel) around a voxel, from its cosine sum so that a taper over k-space
    (0 none, 1 Hann) can weigh the frequencies.
    """
    k = np.arange(1, n // 2 + 1)
    window = 1 - taper + taper * 0.5 * (1 + np.cos(np.pi * k / (n / 2)))
    if n % 2 == 0:
        window[-1] *= 0.5
    phase = 2 * np.pi / (n * step) * (centres[:, None] - positions[None, :])
    kernel = 1 + 2 * np.cos(phase[..., None] * k) @ window
    return np.asarray(kernel / len(positions))


@dataclass(frozen=True)
class Geometry:
    """Smooth fields at control points of a field of view, and how they are interpolated.

    Attributes
    ----------
    mni_mm : (c0, c1, c2, 3) MNI RAS position that each control point shows
    compression : (c0, c1, c2) signal density by geometric distortion, or None
    controls : positions in mm from the middle of the field of view, for each axis
    """

    mni_mm: NDArray[np.float32]
    compression: NDArray[np.float32] | None
    controls: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def geometry(
    prescription: Prescription, subject: Subject, extents_mm: tuple[float, float, float], distortion: Distortion | None
) -> Geometry:
    """Compute where control points over ``extents_mm`` (S, A, R) lie in MNI space."""
    spacing = CONTROL_MM if distortion is None else 6.0
    controls = tuple(np.linspace(-e / 2, e / 2, int(np.ceil(e / spacing)) + 2) for e in extents_mm)
    mesh = np.stack(np.meshgrid(*controls, indexing="ij"), -1)
    patient = mesh @ prescription.axes + prescription.centre_mm
    compression = None
    if distortion is not None:
        shape = mesh.shape[:3]
        true = subject.to_mni(patient.reshape(-1, 3))
        shift = distortion.shift_mm(true).reshape(shape)
        axis = prescription.phase_axis
        compression = np.clip(1 - np.gradient(shift, controls[axis], axis=axis), 0.25, 2.5).astype(np.float32)
        patient = patient - shift[..., None] * prescription.axes[axis]
    mni = subject.to_mni(patient.reshape(-1, 3)).reshape(mesh.shape)
    return Geometry(mni.astype(np.float32), compression, (controls[0], controls[1], controls[2]))


@dataclass(frozen=True)
class Distortion:
    """Echo-planar shift along the phase axis by the field of the head's own air."""

    field_ppm: NDArray[np.float32]
    base: Map
    mm_per_ppm: float

    def shift_mm(self, mni_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shift in mm at MNI positions (N, 3)."""
        where = torch.from_numpy(normalised(mni_mm.astype(np.float32), self.base)).view(1, 1, 1, -1, 3)
        source = torch.from_numpy(self.field_ppm)[None, None]
        ppm = torch.nn.functional.grid_sample(source, where, padding_mode="border", align_corners=True).view(-1)
        return np.clip(ppm.numpy().astype(np.float64) * self.mm_per_ppm, -22, 22)


def normalised(mni_mm: NDArray[np.float32], base: Map) -> NDArray[np.float32]:
    """MNI RAS mm to grid_sample's coordinates (x, y, z in -1..1, corners aligned)."""
    sizes = (np.array(base.codes.shape[::-1]) - 1) * base.step_mm
    return (2 * (mni_mm - np.array(base.origin_mm, np.float32)) / sizes.astype(np.float32) - 1).astype(np.float32)


def hat_matrix(controls: NDArray[np.float64], positions: NDArray[np.float64]) -> Tensor:
    """Matrix of linear interpolation from control points to positions; the ends hold beyond them."""
    place = np.clip((positions - controls[0]) / (controls[1] - controls[0]), 0, len(controls) - 1)
    weights = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(len(controls))))
    return torch.from_numpy(weights.astype(np.float32))


def separable(field: Tensor, matrices: tuple[Tensor | None, Tensor | None, Tensor | None]) -> Tensor:
    """Apply a matrix along each of the first three axes of (a, b, c) or (a, b, c, k)."""
    if matrices[2] is not None:
        field = torch.matmul(matrices[2], field) if field.ndim == 4 else torch.matmul(field, matrices[2].T)
    if matrices[1] is not None:
        a, b = field.shape[:2]
        rest = field.shape[2:]
        field = torch.matmul(matrices[1], field.reshape(a, b, -1)).view(a, -1, *rest)
    if matrices[0] is not None:
        rest = field.shape[1:]
        field = torch.mm(matrices[0], field.reshape(field.shape[0], -1)).view(-1, *rest)
    return field


def sample(
    source: Tensor, base: Map, shown: Geometry, positions: tuple[NDArray[np.float64], ...], mode: str = "bilinear"
) -> Tensor:
    """Sample ``source`` (S, A, R), an image over ``base``, at lattice positions; 0 outside. Returns (s, a, r)."""
    control = torch.from_numpy(normalised(shown.mni_mm, base))
    matrices = [hat_matrix(c, p) for c, p in zip(shown.controls, positions, strict=True)]
    slabs = []
    # Slabs keep the coordinates of a native matrix out of memory.
    chunk = max(1, 4_000_000 // max(1, len(positions[1]) * len(positions[2])))
    for rows in torch.split(matrices[0], chunk):
        where = separable(control, (rows, matrices[1], matrices[2]))
        slabs.append(
            torch.nn.functional.grid_sample(source[None, None], where[None], mode=mode, align_corners=True)[0, 0]
        )
    return torch.cat(slabs) if len(slabs) > 1 else slabs[0]


def receive_field(
    rng: np.random.Generator, shown: Geometry, field_strength_t: float, array_share: float
) -> NDArray[np.float32]:
    """Smooth multiplicative shading at the control points: transmit centre brightening, coil fall-off, and the rest.

    ``array_share`` is the probability of an unnormalised receive array, brightest near its elements.
    """
    mesh = np.meshgrid(*[c / 110.0 for c in shown.controls], indexing="ij")
    strength = rng.uniform(0.02, 0.16) * (1.5 if field_strength_t > 2 else 1.0)
    shading = np.zeros_like(mesh[0])
    for axis in mesh:
        shading += strength * (rng.normal() * axis + rng.normal() * axis**2)
    shading += strength * (rng.normal() * mesh[0] * mesh[1] + rng.normal() * mesh[1] * mesh[2])
    if rng.random() < array_share:
        centre = rng.normal(0, 0.12, 3) + np.array([0.0, rng.uniform(0, 0.35), 0.0])  # the head lies on the array
        radius = sum((m - c) ** 2 for m, c in zip(mesh, centre, strict=True))
        shading += rng.uniform(0.1, 1.1) * np.minimum(radius, 1.4)
    if rng.random() < 0.5:  # and falls off below the coil
        below = np.clip(-(mesh[0] + rng.uniform(0.2, 0.9)), 0, None)
        shading -= rng.uniform(0.3, 2.0) * below
    return np.exp(np.clip(shading, -2.5, 1.5)).astype(np.float32)


def magnitude_noise(image: Tensor, sigma: float, share: float, generator: torch.Generator) -> Tensor:
    """Add the noise of a magnitude image.

    Where ``share`` is 1, complex Gaussian noise of ``sigma`` a channel: Rician. Where it is less, what is left of such
    noise after magnitudes were averaged: the Rician mean and that share of the Rician variance
    (Gudbjartsson 1995, MRM 34:910; the mean by an approximation good to 2 %).
    """
    if share > 0.999:
        real = torch.randn(image.shape, generator=generator).mul_(sigma).add_(image)
        imaginary = torch.randn(image.shape, generator=generator).mul_(sigma)
        return torch.hypot(real, imaginary)
    square = image * image
    s2 = sigma * sigma
    second = square + s2 * (1 + (np.pi / 2 - 1) * torch.exp(square * (-0.5 / s2)))
    spread = (square + 2 * s2 - second).clamp_(min=0).mul_(share).sqrt_()
    noise = torch.randn(image.shape, generator=generator)
    return second.sqrt_().add_(noise.mul_(spread)).clamp_(min=0)


def extended(positions: NDArray[np.float64], beyond: int) -> NDArray[np.float64]:
    """Continue evenly spaced positions by ``beyond`` points on either side."""
    return centred(len(positions) + 2 * beyond, float(positions[1] - positions[0]))


def fold(image: Tensor, axis: int, beyond: int) -> Tensor:
    """Fold ``beyond`` points on either side of the field of view onto its other end, as aliasing does."""
    size = image.shape[axis] - 2 * beyond
    inner = image.narrow(axis, beyond, size).clone()
    inner.narrow(axis, size - beyond, beyond).add_(image.narrow(axis, 0, beyond))
    inner.narrow(axis, 0, beyond).add_(image.narrow(axis, beyond + size, beyond))
    return inner


def ghosts(image: Tensor, axis: int, strength: float, shift: int) -> Tensor:
    """Add a copy displaced along the phase axis, as periodic motion or alternating echoes do."""
    return image + strength * torch.roll(image, shift, axis)


def resize_matrix(voxels: int, step_mm: float, count: int, grid_mm: float) -> Tensor:
    """Linear interpolation from acquired voxel centres to ``count`` grid voxels, both centred; the border repeats."""
    if voxels == 1:
        return torch.ones(count, 1)
    return hat_matrix(centred(voxels, step_mm), centred(count, grid_mm))


def centred(count: int, step_mm: float) -> NDArray[np.float64]:
    """Positions of ``count`` points around 0."""
    return np.asarray((np.arange(count) - (count - 1) / 2) * step_mm, np.float64)
