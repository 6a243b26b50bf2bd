"""What a skull-stripped brain template lacks, painted around the brain: CSF, skull, scalp, face, neck.

Signed distances (mm, negative inside) of ellipsoids and tubes are joined with a smooth minimum; the skull follows the
distance from the closed brain. Positions are MNI millimetres, R, A, S positive, measured on published atlases of the
MNI space; sizes vary with the generator, so that several heads can be built around one brain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from .tissues import TISSUES

F = NDArray[np.float32]
Point = tuple[float, float, float]

CLOSING_MM = 9.0
AIR, GREY, WHITE, CSF = (TISSUES.index(name) for name in ("air", "grey", "white", "csf"))
BONE, MARROW, FAT, SKIN = (TISSUES.index(name) for name in ("bone", "marrow", "fat", "skin"))
MUSCLE, VITREOUS, GLAND, BLOOD = (TISSUES.index(name) for name in ("muscle", "vitreous", "gland", "blood"))


@dataclass(frozen=True)
class Frame:
    """A lattice in MNI space: open coordinate arrays that broadcast to (S, A, R), and the step in mm."""

    x: F  # (1, 1, R)
    y: F  # (1, A, 1)
    z: F  # (S, 1, 1)
    step_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes along (S, A, R)."""
        return self.z.shape[0], self.y.shape[1], self.x.shape[2]

    def ellipsoid(self, centre: Point, radii: Point, pitch_deg: float = 0.0) -> F:
        """Approximate signed distance; ``pitch_deg`` turns it about the left-right axis, anterior end up."""
        x, y, z = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        if pitch_deg:
            c, s = np.float32(np.cos(np.radians(pitch_deg))), np.float32(np.sin(np.radians(pitch_deg)))
            y, z = c * y + s * z, c * z - s * y
        radius = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        return ((radius - 1) * min(radii)).astype(np.float32)

    def pair(self, centre: Point, radii: Point, pitch_deg: float = 0.0) -> F:
        """Return the signed distance of the same ellipsoid on both sides of the midline."""
        mirrored = (-centre[0], centre[1], centre[2])
        return np.minimum(self.ellipsoid(centre, radii, pitch_deg), self.ellipsoid(mirrored, radii, pitch_deg))

    def tube(self, start: Point, end: Point, radius: float, radius_end: float | None = None) -> F:
        """Signed distance of a capsule whose radius runs from ``radius`` to ``radius_end``."""
        d = np.subtract(end, start).astype(np.float32)
        x, y, z = self.x - start[0], self.y - start[1], self.z - start[2]
        along = np.clip((x * d[0] + y * d[1] + z * d[2]) / np.float32(d @ d), 0, 1)
        distance = np.sqrt((x - along * d[0]) ** 2 + (y - along * d[1]) ** 2 + (z - along * d[2]) ** 2)
        return (distance - (radius + along * ((radius_end or radius) - radius))).astype(np.float32)

    def noise(self, rng: np.random.Generator, size_mm: Point) -> F:
        """Smooth Gaussian noise of unit variance; ``size_mm`` is its grain along (R, A, S)."""
        sizes = [max(3, round(n * self.step_mm / s) + 3) for n, s in zip(self.shape, size_mm[::-1], strict=True)]
        coarse = torch.from_numpy(rng.standard_normal(sizes).astype(np.float32))[None, None]
        fine = torch.nn.functional.interpolate(coarse, size=self.shape, mode="trilinear", align_corners=True)
        return np.asarray((fine / fine.std())[0, 0].numpy(), np.float32)

    def grain(self, rng: np.random.Generator) -> F:
        """White noise: added to a smooth field before a threshold, it mixes tissues gradually."""
        return rng.standard_normal(self.shape, dtype=np.float32)


def smooth_union(a: F, b: F, width_mm: float) -> F:
    """Polynomial smooth minimum of two signed distances (Quilez): a fillet of about ``width_mm``."""
    h = np.clip(0.5 + 0.5 * (b - a) / width_mm, 0, 1)
    return (b + (a - b) * h - width_mm * h * (1 - h)).astype(np.float32)


def signed_distance(mask: NDArray[np.bool_], step_mm: float) -> F:
    """Euclidean distance in mm, negative inside."""
    outside = ndimage.distance_transform_edt(~mask, sampling=step_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=step_mm)
    return (outside - inside).astype(np.float32)


def build_head(frame: Frame, brain: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Label every voxel outside the brain.

    Parameters
    ----------
    frame : Frame
        The lattice.
    brain : ndarray of bool, (S, A, R)
        Brain of the template, in the same lattice.
    rng : numpy.random.Generator
        Sizes and thicknesses of this head.

    Returns
    -------
    labels : ndarray of uint8, (S, A, R)
        Index into ``TISSUES``. Inside the brain's closed hull: CSF.
    """
    hull = _hull(frame, brain)
    skin = _skin(frame, hull, rng)
    labels = np.full(frame.shape, AIR, np.uint8)
    _soft_tissue(frame, labels, skin, rng)
    _neck(frame, labels, skin, rng)
    _face(frame, labels, skin, rng)
    _skull(frame, labels, hull, skin, rng)
    _air_spaces(frame, labels, skin, rng)
    _eyes(frame, labels, rng)
    labels[(hull < 2.0) & (frame.z > -76)] = CSF
    sinus = (np.abs(frame.x) < 3.5) & (hull > 0.0) & (hull < 5.0) & (frame.y < 55) & ((frame.z > 35) | (frame.y < -70))
    labels[sinus & (frame.z > -30)] = BLOOD
    _spine(frame, labels, rng)
    return labels


def _hull(frame: Frame, brain: NDArray[np.bool_]) -> F:
    """Signed distance of the brain closed over its sulci and smoothed, as the dura is.

    Computed on every second voxel: the surface is smooth on that scale, and distance transforms are what takes time.
    """
    sparse, step = brain[::2, ::2, ::2], 2 * frame.step_mm
    closed = signed_distance(signed_distance(sparse, step) < CLOSING_MM, step) + CLOSING_MM
    smooth = torch.from_numpy(ndimage.gaussian_filter(closed, 2.0 / step))[None, None]
    upsampled = torch.nn.functional.interpolate(smooth, size=frame.shape, mode="trilinear", align_corners=False)
    return np.asarray(upsampled[0, 0].numpy(), np.float32)


def _skin(frame: Frame, hull: F, rng: np.random.Generator) -> F:
    """Signed distance of the outer surface: cranium, face, nose, jaw, neck, shoulders."""
    u = rng.uniform
    scalp = u(13.0, 16.5)
    # Above the skull base the surface follows the brain; temporal muscle and nuchal fat thicken it below.
    lower = np.clip((10 - frame.z) / 60, 0, 1)
    surface = np.asarray(hull - scalp - 3.0 * lower, np.float32)
    face = frame.ellipsoid((0, 38, -62), (u(60, 66), u(58, 63), u(58, 68)))
    jaw = frame.ellipsoid((0, 52, u(-112, -104)), (u(42, 50), u(44, 50), u(30, 36)), -12)
    brow = frame.ellipsoid((0, 62, -22), (54, 29, 26))
    neck_width = u(54, 66)
    neck = frame.tube((0, -30, -60), (0, u(-48, -34), -220), neck_width, neck_width * u(0.9, 1.02))
    nape = frame.ellipsoid((0, -62, -85), (52, u(46, 54), 60))
    shoulders = frame.ellipsoid((0, -40, -232), (190, 80, 62))
    nose = smooth_union(
        frame.tube((0, 84, -34), (0, u(101, 108), u(-66, -60)), 6.0, 10.5), frame.pair((9, 94, -66), (8, 11, 8)), 6
    )
    for part, width in ((face, 14), (brow, 10), (jaw, 18), (neck, 24), (nape, 22), (shoulders, 30), (nose, 9)):
        surface = smooth_union(surface, part, width)
    lips = frame.ellipsoid((0, 97, -92), (22, 8, 11))
    chin = frame.ellipsoid((0, 86, -118), (18, 12, 12))
    surface = smooth_union(smooth_union(surface, lips, 8), chin, 10)
    surface = np.asarray(np.maximum(surface, -frame.pair((32, 88, -38), (13, 13, 11))), np.float32)  # eye sockets
    ears = frame.pair((u(84, 88), -32, -44), (4.5, 15, u(26, 32)), 15)
    return smooth_union(surface, ears, 4)


def _soft_tissue(frame: Frame, labels: NDArray[np.uint8], skin: F, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat, and under it muscle marbled with fat."""
    inside = skin < 0
    smooth = frame.noise(rng, (9, 12, 16)) + 0.8 * frame.noise(rng, (3.5, 5, 8))
    grain = smooth + 0.9 * frame.grain(rng)
    labels[inside] = MUSCLE
    labels[inside & (grain > rng.uniform(1.5, 2.1))] = FAT
    labels[inside & (grain < -1.7)] = GLAND
    fat_mm = rng.uniform(3.0, 6.0) + 1.2 * frame.noise(rng, (40, 40, 40))
    cheek = np.exp(-(((np.abs(frame.x) - 48) / 24) ** 2) - ((frame.y - 45) / 38) ** 2 - ((frame.z + 75) / 38) ** 2)
    nape = np.exp(-((frame.x / 60) ** 2) - ((frame.y + 100) / 40) ** 2 - ((frame.z + 105) / 45) ** 2)
    fat_mm = fat_mm + rng.uniform(4, 9) * cheek + rng.uniform(3, 10) * nape
    labels[inside & (skin > -1.8 - fat_mm)] = FAT
    labels[inside & (skin > -rng.uniform(1.6, 2.4))] = SKIN


def _skull(frame: Frame, labels: NDArray[np.uint8], hull: F, skin: F, rng: np.random.Generator) -> None:
    """Inner and outer table with diploe between; a thick, mixed base; temporal muscle beside it."""
    thick = rng.uniform(5.5, 7.5) + 0.9 * frame.noise(rng, (35, 35, 35))
    thick = thick + 3.0 * np.exp(-(((frame.y + 105) / 22) ** 2) - ((frame.z + 10) / 28) ** 2)
    base = (frame.z < -28) | ((frame.z < -8) & (frame.y > 30))
    outer = 2.0 + np.minimum(thick, 11.0)
    shell = (hull < outer) & (hull > 0) & (frame.z > -72) & (skin < -2.5)
    temporal = (hull < outer + 9) & (hull > 0) & (np.abs(frame.x) > 40) & (frame.z < 18) & (frame.z > -60)
    labels[temporal & (frame.y > -25) & (frame.y < 52) & (skin < -6.5)] = MUSCLE
    labels[shell] = BONE
    middle = np.abs(hull - 2.0 - thick / 2) < thick * rng.uniform(0.16, 0.26)
    cells = frame.noise(rng, (6, 6, 6)) + 0.6 * frame.grain(rng)
    diploe = middle & ~base & (np.abs(frame.x) < 62) & (thick > 5.2)
    labels[shell & diploe & (cells > -1.2)] = MARROW
    labels[shell & base & middle & (cells > 0.3)] = MARROW
    clivus = frame.ellipsoid((0, -4, -52), (11, 7, 19), -35)
    petrous = np.minimum(
        frame.tube((16, -8, -42), (56, -34, -44), 6.5, 12.0), frame.tube((-16, -8, -42), (-56, -34, -44), 6.5, 12.0)
    )
    outside_brain = hull > 1.0
    labels[(petrous < 0) & outside_brain & (skin < -8)] = BONE
    labels[(clivus < 0) & outside_brain] = BONE
    labels[(clivus < -2.2) & outside_brain] = MARROW


def _air_spaces(frame: Frame, labels: NDArray[np.uint8], skin: F, rng: np.random.Generator) -> None:
    """Paranasal sinuses, nasal cavity, mastoid cells, ear canals, mouth and pharynx; each behind its thin wall."""
    u = rng.uniform
    cells = frame.noise(rng, (5, 6, 6))
    rooms = (
        frame.pair((30, 44, -66), (u(11, 15), u(14, 18), u(14, 18))),
        frame.pair((8, 18, -46), (u(7, 10), u(9, 13), u(7, 10))),
        frame.pair((10, 78, -6), (u(5, 14), u(4, 7), u(6, 14))),
    )
    for room in rooms:
        labels[(room < 1.6) & (skin < -4)] = BONE
        labels[(room < 0.0) & (skin < -4)] = GLAND
        labels[(room < -u(0.6, 1.8)) & (skin < -5)] = AIR
    ethmoid = frame.ellipsoid((0, 46, -40), (13, 25, 11))
    labels[(ethmoid < 1.5) & (skin < -5)] = BONE
    labels[(ethmoid < 0) & (skin < -5)] = np.where(cells > -0.2, AIR, GLAND)[(ethmoid < 0) & (skin < -5)]
    cavity = frame.ellipsoid((0, 56, -64), (15, 38, 17), 8)
    sheets = np.sin(2 * np.pi * (np.abs(frame.x) + 0.35 * np.abs(frame.z + 64)) / 8.0 + 0.7 * cells) + 0.2
    inside = (cavity < 0) & (skin < -3)
    labels[(cavity < 2) & (skin < -4)] = GLAND
    labels[inside] = np.where((sheets > 0) & (np.abs(frame.x) > 1.6), AIR, GLAND)[inside]
    nostril = np.minimum(frame.tube((6, 84, -66), (7, 98, -76), 4), frame.tube((-6, 84, -66), (-7, 98, -76), 4))
    labels[nostril < 0] = AIR
    mastoid = frame.pair((53, -34, -54), (u(8, 12), u(12, 16), u(14, 18)), 20)
    filled = (mastoid < 0) & (skin < -7)
    labels[filled] = np.where(cells > -0.4, AIR, BONE)[filled]
    canal = np.minimum(
        frame.tube((46, -22, -45), (90, -24, -46), 3.2), frame.tube((-46, -22, -45), (-90, -24, -46), 3.2)
    )
    labels[(canal < 1.8) & (skin < -8)] = BONE
    labels[canal < 0] = AIR
    pharynx = np.minimum(
        frame.tube((0, 20, -66), (0, 4, -92), 9, 7), frame.tube((0, 4, -92), (0, u(8, 14), -165), u(4, 8), u(7, 10))
    )
    labels[(pharynx < 3) & (skin < -6)] = GLAND
    labels[(pharynx < 0) & (skin < -6)] = AIR


def _face(frame: Frame, labels: NDArray[np.uint8], skin: F, rng: np.random.Generator) -> None:
    """Jaws, teeth, palate, tongue, parotid glands."""
    u = rng.uniform
    deep = skin < -3.5
    parotid = frame.pair((61, -6, -76), (11, 15, 22))
    labels[(parotid < 0) & deep] = GLAND
    masseter = frame.pair((53, 22, -84), (8, 17, 26))
    pterygoid = frame.pair((38, 16, -70), (9, 14, 18))
    labels[(np.minimum(masseter, pterygoid) < 0) & deep] = MUSCLE
    grain = frame.noise(rng, (4, 10, 5))
    tongue = frame.ellipsoid((0, 48, -104), (u(22, 26), u(34, 40), u(17, 22)))
    labels[(tongue < 1.5) & deep] = GLAND
    labels[(tongue < 0) & deep] = np.where(grain > 0.6, GLAND, MUSCLE)[(tongue < 0) & deep]
    mouth = (tongue > 0) & (tongue < u(0.5, 3)) & (frame.z > -100) & (frame.y < 84) & deep
    labels[mouth] = AIR
    radius = np.sqrt((frame.x / 0.80) ** 2 + (np.maximum(frame.y - 30, 0)) ** 2)
    arc = np.where(frame.y > 30, np.abs(radius - 54), np.abs(np.abs(frame.x) - 43 - 0.22 * (30 - frame.y)))
    body = np.maximum(arc - 6.0, np.abs(frame.z + 118) - 11)
    ramus = frame.pair((49, 12, -92), (5, 13, 32), 12)
    mandible = smooth_union(np.where(frame.y > 5, body, 99).astype(np.float32), ramus, 6)
    labels[(mandible < 0) & (skin < -4)] = BONE
    labels[(mandible < -u(1.8, 2.6)) & (skin < -4)] = MARROW
    maxilla = np.maximum(arc - 5.5, np.abs(frame.z + 86) - 5)
    labels[(maxilla < 0) & (frame.y > 30) & (skin < -4)] = BONE
    labels[(maxilla < -2.2) & (frame.y > 30) & (skin < -4)] = MARROW
    teeth = (arc < 3.6) & (frame.y > 38) & (np.abs(frame.z + 99) < 8) & (skin < -4)
    labels[teeth] = BONE
    palate = frame.ellipsoid((0, 50, -84), (24, 32, 2.6), 4)
    labels[(palate < 0) & deep] = BONE
    zygoma = frame.pair((52, 45, -52), (8, 12, 6))
    labels[(zygoma < 0) & (skin < -5)] = BONE
    labels[(zygoma < -2) & (skin < -5)] = MARROW


def _eyes(frame: Frame, labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Globes in orbital fat, lens, straight muscles and optic nerves."""
    shift, radius = rng.uniform(-2, 3), rng.uniform(11.2, 12.6)
    orbit = frame.pair((27, 46, -38), (17.5, 33, 16))
    muscle_core = frame.pair((26, 44, -38), (12, 26, 11))
    globe = frame.pair((32, 63 + shift, -38), (radius, radius, radius))
    lens = frame.pair((32, 63 + shift + radius - 4, -38), (4.6, 2.2, 4.6))
    socket = (orbit < 0) & ((labels != AIR) | (frame.y < 60)) & (np.abs(frame.x) > 11) & (frame.y < 74 + shift)
    labels[(orbit < 1.8) & (orbit >= 0) & (labels == MUSCLE)] = BONE
    labels[socket] = FAT
    labels[socket & (np.abs(muscle_core) < 1.3) & (frame.y < 60)] = MUSCLE
    nerve = np.minimum(frame.tube((30, 52, -38), (8, 14, -30), 2.2), frame.tube((-30, 52, -38), (-8, 14, -30), 2.2))
    labels[nerve < 0] = WHITE
    labels[globe < 1.2] = MUSCLE
    labels[globe < 0] = VITREOUS
    labels[lens < 0] = MUSCLE


def _neck(frame: Frame, labels: NDArray[np.uint8], skin: F, rng: np.random.Generator) -> None:
    """Named muscles as bundles in fat, great vessels."""
    deep = (skin < -4) & (frame.z < -70)
    bundles = (
        frame.pair((13, -72, -120), (11, 13, 60)),
        frame.pair((30, -66, -120), (12, 11, 60)),
        frame.pair((46, -36, -125), (9, 19, 55), 15),
        frame.pair((17, -14, -130), (9, 8, 60)),
        frame.pair((24, -92, -115), (17, 7, 55)),
    )
    wander = 2.0 * frame.noise(rng, (10, 10, 25)) + 0.8 * frame.grain(rng)
    between = np.minimum.reduce([np.abs(b + wander) for b in bundles]) < rng.uniform(0.5, 1.2)
    marbled = frame.noise(rng, (3, 3, 12)) + frame.grain(rng) > rng.uniform(2.0, 2.8)
    for bundle in bundles:
        labels[(bundle + wander < 0) & deep] = MUSCLE
    labels[(between | marbled) & deep & (labels == MUSCLE)] = FAT
    for side in (-1, 1):
        vessels = ((24, -6, -72), (30, 2, -200), 3.2), ((32, -14, -66), (36, -4, -200), 5.0)
        for start, end, radius in vessels:
            tube = frame.tube((side * start[0], start[1], start[2]), (side * end[0], end[1], end[2]), radius)
            labels[(tube < 0) & (skin < -4)] = BLOOD


def _spine(frame: Frame, labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Cervical vertebrae with discs, canal with CSF, cord as a continuation of the brain stem."""
    u = rng.uniform
    z = frame.z
    bend = u(-10, 6)
    middle = np.interp(z, [-225, -150, -100, -62], [-46 + bend, -42 + bend / 2, -42, -38]).astype(np.float32)
    y = frame.y - middle
    below = z < -68
    period = u(16.5, 19.5)
    disc = np.abs((z + 104) % period - period / 2) < period * 0.14
    body = np.sqrt((frame.x / 13) ** 2 + ((y - 21) / 10.5) ** 2)
    tall = z < -84
    labels[(body < 1) & tall] = BONE
    labels[(body < 0.86) & tall] = MARROW
    labels[(body < 0.96) & tall & disc] = GLAND
    arch = (np.sqrt((frame.x / 20) ** 2 + (y / 15) ** 2) < 1) & (z < -78)
    labels[arch & (labels != MARROW) & ((z + 104) % period < period * 0.62)] = BONE
    process = (np.abs(frame.x) < 4) & (y < -12) & (y > -34) & (z < -92) & ((z + 99) % period < period * 0.45)
    labels[process] = MARROW
    canal = np.sqrt((frame.x / 11.0) ** 2 + (y / 8.5) ** 2)
    labels[(canal < 1) & below] = CSF
    cord = np.sqrt((frame.x / u(5.6, 6.6)) ** 2 + (y / u(4.3, 5.2)) ** 2)
    labels[(cord < 1) & below] = WHITE
    labels[(np.abs(frame.x) < 2.6) & (np.abs(y) < 2.2) & below] = GREY
