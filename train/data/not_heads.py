"""Series that are not heads: phantoms, noise, other body parts, scrambled heads. For the scope of the model.

No real phantom is copied: shapes are the common ones (fluid-filled spheres, bottles and cylinders, resolution grids,
inserts as in accreditation phantoms), sizes and contrasts are drawn.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from decipher_rt.manifest import Preprocessing
from decipher_rt.volume import Acquisition

from . import acquisition as acq
from .protocol import rotation
from .sample import Sample, Truth

F = NDArray[np.float32]


def simulate_other(seed: int, kind: str, preprocessing: Preprocessing) -> Sample:
    """Simulate a ``phantom``, ``noise`` or ``other_anatomy`` on the training grid."""
    rng = np.random.default_rng([seed, 0x0BEC7])
    spacing, grid = preprocessing.spacing_mm, preprocessing.grid_shape
    fov, step, axis = _draw_field_of_view(rng, kind)
    lattice_step = np.maximum(step, spacing)
    shape = np.maximum(np.floor(fov / lattice_step + 0.501), 1).astype(int)
    positions = [acq.centred(int(n), float(d)) for n, d in zip(shape, lattice_step, strict=True)]
    if kind == "noise":
        image = np.zeros(shape, np.float32) if rng.random() < 0.5 else _texture(rng, shape)
    else:
        points = _Points(rng, positions)
        image = _phantom(rng, points) if kind == "phantom" else _body(rng, points)
        image *= _shading(rng, positions)
        if rng.random() < 0.4:
            axis_blur = np.ones(3) * 0.3
            axis_blur[axis] = 0.6
            image = _blur(image, axis_blur)
    scale = float(np.exp(rng.uniform(np.log(100), np.log(4000))))
    sigma = scale / float(np.exp(rng.uniform(np.log(15), np.log(150))))
    generator = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    tensor = torch.from_numpy(image * scale)
    if kind == "phantom" and rng.random() < 0.35:
        tensor = acq.ghosts(tensor, 1, float(rng.uniform(0.02, 0.12)), round(rng.uniform(0.3, 0.6) * shape[1]))
    noisy = acq.magnitude_noise(tensor, sigma, float(np.prod(np.minimum(1, step / lattice_step))), generator)
    if kind != "noise" and rng.random() < 0.3:
        noisy = torch.where(tensor < 2 * sigma, noisy * 0.1, noisy)
    low, high = np.percentile(noisy.numpy(), preprocessing.window_percentiles, method="inverted_cdf")
    counts = [
        min(g, max(1, int(np.floor(f / s + 0.501))))
        for g, f, s in zip(grid, shape * lattice_step, spacing, strict=True)
    ]
    volume = np.full(grid, low, np.float32)
    starts = [(g - c) // 2 for g, c in zip(grid, counts, strict=True)]
    place = tuple(slice(a, a + c) for a, c in zip(starts, counts, strict=True))
    matrices = [
        acq.resize_matrix(int(n), float(d), c, s)
        for n, d, c, s in zip(shape, lattice_step, counts, spacing, strict=True)
    ]
    volume[place] = acq.separable(noisy, (matrices[0], matrices[1], matrices[2])).numpy()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])[:, [2, 1, 0, 3]] * np.array([*spacing, 1.0])
    return _sample(volume, float(low), float(high), kind, affine)


def scramble(seed: int, head: Sample, preprocessing: Preprocessing) -> Sample:
    """Make a head no head: shuffle blocks, exchange axes, mirror one half onto the other, or roll."""
    rng = np.random.default_rng([seed, 0x5C4A])
    volume = head.volume.copy()
    way = rng.choice(["blocks", "transposed", "mirrored", "rolled"], p=[0.5, 0.15, 0.15, 0.2])
    if way == "blocks":
        size = int(rng.choice([1, 2, 3])) * np.array(preprocessing.patch_shape)
        size = np.minimum(size, np.array(volume.shape) // 2)
        counts = np.array(volume.shape) // size
        inner = volume[tuple(slice(0, c * s) for c, s in zip(counts, size, strict=True))]
        c, s = counts, size
        blocks = inner.reshape(c[0], s[0], c[1], s[1], c[2], s[2]).transpose(0, 2, 4, 1, 3, 5).reshape(-1, *s)
        blocks = blocks[rng.permutation(len(blocks))]
        inner[:] = blocks.reshape(*c, *s).transpose(0, 3, 1, 4, 2, 5).reshape(inner.shape)
    elif way == "transposed" and len(set(volume.shape)) == 1:
        volume = np.ascontiguousarray(volume.transpose(1, 0, 2)[::-1])  # a head that lies on its face in the grid
    elif way == "mirrored":
        half = volume.shape[0] // 2
        volume[:half] = volume[volume.shape[0] - half :][::-1]
    else:
        volume = np.roll(volume, [int(n * rng.uniform(0.3, 0.7)) for n in volume.shape], (0, 1, 2))
    empty = np.zeros_like(head.tissue)
    return dataclasses.replace(
        head,
        volume=volume,
        labels=Truth(None, lesion=False, kind="scrambled"),
        tissue=empty,
        volumes_ml=dict.fromkeys(head.volumes_ml, 0.0),
        lesions=(),
        facts={"way": str(way)},
    )


def _sample(volume: F, low: float, high: float, kind: str, affine: NDArray[np.float64]) -> Sample:
    return Sample(
        volume=volume,
        window=np.array([low, max(high, low + 1e-3)], np.float32),
        labels=Truth(None, lesion=False, kind=kind),
        tissue=np.zeros(volume.shape, np.uint8),
        volumes_ml=dict.fromkeys(("grey", "white", "csf", "lesion", "brain"), 0.0),
        lesions=(),
        header=Acquisition(modality="MR"),
        affine_lps_mm=affine,
    )


def _draw_field_of_view(rng: np.random.Generator, kind: str) -> tuple[F, F, int]:
    """Extent and voxel size along (S, A, R), and the slice axis."""
    u = rng.uniform
    axis = int(rng.choice(3, p=[0.6, 0.2, 0.2]))
    fov, step = np.full(3, u(180, 300)), np.full(3, u(0.8, 4.0))
    thick = rng.random() < 0.7
    step[axis] = u(2.4, 10.0) if thick else step[0]
    low, high = (14, 170) if kind == "phantom" else (60, 280)
    fov[axis] = u(low, high) if rng.random() < 0.7 else fov[0]
    fov[axis] = max(1, round(fov[axis] / step[axis])) * step[axis]
    return fov.astype(np.float32), step.astype(np.float32), axis


class _Points:
    """Positions of a turned, slightly bent frame, as open or full arrays, and shapes in it."""

    def __init__(self, rng: np.random.Generator, positions: list[NDArray[np.float64]]) -> None:
        z, y, x = (p.astype(np.float32) for p in positions)
        turn = rotation(*rng.normal(0, 6, 3)).astype(np.float32)
        shift = rng.normal(0, 9, 3).astype(np.float32)
        x3, y3, z3 = x[None, None, :] - shift[0], y[None, :, None] - shift[1], z[:, None, None] - shift[2]
        self.x, self.y, self.z = (turn[i, 0] * x3 + turn[i, 1] * y3 + turn[i, 2] * z3 for i in range(3))
        if rng.random() < 0.5:  # gradients that are not linear bend straight lines
            bend = np.float32(rng.normal(0, 3e-4))
            self.x, self.y = self.x + bend * self.z**2, self.y - bend * self.z * self.x

    def ellipsoid(self, centre: NDArray[np.float64], radii: NDArray[np.float64]) -> F:
        """Soft occupancy, 0 to 1."""
        r = np.sqrt(sum(((a - c) / q) ** 2 for a, c, q in zip((self.x, self.y, self.z), centre, radii, strict=True)))
        return np.clip(0.5 + (1 - r) * min(radii) / 2, 0, 1).astype(np.float32)

    def cylinder(self, centre: NDArray[np.float64], radius: float, height: float, along: int) -> F:
        """Soft occupancy of a cylinder along R, A or S (0, 1, 2)."""
        axes = [a - c for a, c in zip((self.x, self.y, self.z), centre, strict=True)]
        length = axes.pop(along)
        r = np.sqrt(axes[0] ** 2 + axes[1] ** 2)
        return (np.clip(0.5 + (radius - r) / 2, 0, 1) * np.clip(0.5 + (height / 2 - np.abs(length)) / 2, 0, 1)).astype(
            np.float32
        )

    def box(self, centre: NDArray[np.float64], half: NDArray[np.float64]) -> F:
        """Soft occupancy of a block."""
        out = np.float32(1)
        for a, c, h in zip((self.x, self.y, self.z), centre, half, strict=True):
            out = out * np.clip(0.5 + (h - np.abs(a - c)) / 2, 0, 1)
        return np.asarray(out, np.float32)


def _phantom(rng: np.random.Generator, at: _Points) -> F:
    u = rng.uniform
    along = int(rng.integers(3))
    nothing = np.zeros(3)
    way = rng.choice(["sphere", "cylinder", "bottles", "grid", "inserts"], p=[0.24, 0.22, 0.12, 0.20, 0.22])
    if way == "sphere":
        image = at.ellipsoid(nothing, np.full(3, u(55, 100)) * np.exp(rng.normal(0, 0.05, 3)))
    elif way == "bottles":
        image = np.zeros(np.broadcast_shapes(at.x.shape, at.y.shape, at.z.shape), np.float32)
        for _ in range(int(rng.integers(1, 7))):
            centre = rng.uniform(-70, 70, 3)
            image = np.maximum(image, u(0.25, 1.0) * at.cylinder(centre, u(9, 42), u(60, 260), along))
    else:
        image = at.cylinder(nothing, u(60, 105), u(90, 260), along)
    if way == "grid":
        period, bar = u(7, 24), u(0.15, 0.6)
        lines = [np.abs((c + 1000 * period) % period - period / 2) < bar * period / 2 for c in (at.x, at.y, at.z)]
        which = rng.permutation(3)[: int(rng.integers(1, 4))]
        solid = np.logical_or.reduce(np.broadcast_arrays(*[lines[i] for i in which]))
        image = image * (solid if rng.random() < 0.5 else ~solid)
        if rng.random() < 0.4:  # wide channels beside fine lines: a large range of brightness
            for c in rng.permutation(3)[: int(rng.integers(1, 3))]:
                wide = np.abs((at.x, at.y, at.z)[c] - u(-20, 20)) < u(3, 9)
                image = np.where(
                    wide & (image >= 0), np.maximum(image, u(2, 12) * at.cylinder(nothing, 100, 250, along)), image
                )
    if way in ("sphere", "cylinder") and rng.random() < 0.3:  # a jacket with faint signal around the filling
        image = np.maximum(image, u(0.03, 0.2) * at.ellipsoid(nothing, np.full(3, u(80, 120))))
    if way == "inserts":
        for _ in range(int(rng.integers(2, 9))):
            centre, level = rng.uniform(-60, 60, 3), float(rng.choice([0.0, 0.0, u(0.3, 1.4)]))
            part = (
                at.box(centre, rng.uniform(2, 40, 3))
                if rng.random() < 0.6
                else at.cylinder(centre, u(4, 25), u(10, 120), int(rng.integers(3)))
            )
            image = image * (1 - part) + level * part * (image > 0)
        for _ in range(int(rng.integers(0, 3))):  # rows of small holes
            first, pitch = rng.uniform(-50, 20, 3), u(5, 12)
            for k in range(int(rng.integers(3, 9))):
                image = image * (1 - at.cylinder(first + np.array([k * pitch, 0, 0]), u(1.5, 3.5), 200, 2))
    if rng.random() < 0.4:  # air bubble and filling cap
        image = image * (1 - at.ellipsoid(np.array([u(-30, 30), u(50, 95), u(-30, 30)]), rng.uniform(4, 28, 3)))
    return np.ascontiguousarray(image, np.float32)


def _body(rng: np.random.Generator, at: _Points) -> F:
    """Nest ellipsoids and cylinders of drawn brightness: a trunk with organs, limbs with bones, a joint, a breast."""
    u = rng.uniform
    fat, muscle, bone, marrow, organ, fluid = (
        u(0.5, 1.2),
        u(0.2, 0.6),
        u(0.0, 0.15),
        u(0.3, 1.1),
        u(0.3, 0.9),
        u(0.05, 1.3),
    )
    image = np.zeros(np.broadcast_shapes(at.x.shape, at.y.shape, at.z.shape), np.float32)

    def put(part: F, level: float) -> None:
        image[:] = image + part * (level - image)

    way = rng.choice(["trunk", "limbs", "joint", "breast"], p=[0.4, 0.25, 0.25, 0.1])
    if way in ("trunk", "breast"):
        wide, deep = u(120, 190), u(85, 130)
        put(at.ellipsoid(np.zeros(3), np.array([wide, deep, 600])), fat)
        layer = u(8, 32)
        put(at.ellipsoid(np.zeros(3), np.array([wide - layer, deep - layer, 590])), muscle)
        put(at.ellipsoid(np.array([0, 8, 0]), np.array([wide - layer - 14, deep - layer - 14, 580])), u(0.4, 1.0) * fat)
        for _ in range(int(rng.integers(4, 12))):
            centre = np.array([u(-0.6, 0.6) * wide, u(-0.4, 0.5) * deep, u(-130, 130)])
            put(at.ellipsoid(centre, rng.uniform(14, 70, 3)), float(rng.choice([organ, fluid, u(0.1, 1.1), 0.03])))
        put(at.cylinder(np.array([0, -0.5 * deep, 0]), u(17, 24), 900, 2), marrow)
        put(at.cylinder(np.array([0, -0.5 * deep - 32, 0]), u(7, 10), 900, 2), fluid)
        put(at.cylinder(np.array([u(-12, 12), -0.2 * deep, 0]), u(8, 13), 900, 2), u(0, 1))
    else:
        for side in (-1, 1) if rng.random() < 0.5 and way == "limbs" else (0,):
            x, radius = side * u(70, 100), u(42, 85) if way == "limbs" else u(55, 75)
            put(at.ellipsoid(np.array([x, 0, 0]), np.array([radius, radius * u(0.85, 1.15), u(200, 900)])), fat)
            inner = radius - u(4, 20)
            put(at.ellipsoid(np.array([x, 0, 0]), np.array([inner, inner, 700])), muscle)
            shaft = u(11, 18)
            for half in (-1, 1):
                centre = np.array([x, u(-6, 6), half * 150])
                put(at.cylinder(centre, shaft + 4, 292, 2), bone)
                put(at.cylinder(centre, shaft, 292, 2), marrow)
            if way == "joint":
                for z in (-22, 22):
                    put(at.ellipsoid(np.array([x, 0, z]), np.array([u(34, 42), u(26, 34), 20])), bone)
                    put(at.ellipsoid(np.array([x, 0, z]), np.array([u(30, 37), u(22, 30), 18])), marrow)
                put(at.ellipsoid(np.array([x, 0, 0]), np.array([36, 30, u(2, 5)])), fluid)
                put(at.ellipsoid(np.array([x, 44, 5]), np.array([20, 9, 22])), marrow)
    return image


def _texture(rng: np.random.Generator, shape: NDArray[np.int_]) -> F:
    """Blobs without an object: a structured noise image."""
    coarse = torch.from_numpy(
        rng.random((1, 1, *(int(max(2, n // rng.integers(3, 14))) for n in shape)), dtype=np.float32)
    )
    size = [int(n) for n in shape]
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[0, 0].numpy() * np.float32(
        rng.uniform(0.05, 1)
    )


def _shading(rng: np.random.Generator, positions: list[NDArray[np.float64]]) -> F:
    z, y, x = (p / 110 for p in positions)
    a = rng.normal(0, 0.18, 6)
    field = a[0] * z[:, None, None] + a[1] * y[None, :, None] + a[2] * x[None, None, :]
    field = field + a[3] * z[:, None, None] ** 2 + a[4] * y[None, :, None] ** 2 + a[5] * x[None, None, :] ** 2
    if rng.random() < 0.4:
        radius = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None, :] ** 2
        field = field + rng.uniform(-0.5, 0.8) * np.minimum(radius, 1.6)
    return np.exp(np.clip(field, -2, 1.5)).astype(np.float32)


def _blur(image: F, weight: NDArray[np.float64]) -> F:
    """Average three points along each axis, as partial volume and truncation do."""
    for axis, w in enumerate(weight):
        image = (1 - w) * image + (w / 2) * (np.roll(image, 1, axis) + np.roll(image, -1, axis))
    return np.ascontiguousarray(image, np.float32)
