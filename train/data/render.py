"""Render a scene on a lattice: the training grid's own (fast) or the acquired matrix. One code for both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import acquisition as acq
from .anatomy import Head, Map
from .lesions import LABEL, paint
from .scene import Scene
from .tissues import INDEX, TISSUES

# Visible: at least this change of signal, in units of the noise that is left and of white matter's signal ...
MIN_CONTRAST_TO_NOISE, MIN_CONTRAST = 3.0, 0.12
WINDOW_SAMPLES = 40_000
BRAIN = tuple(TISSUES.index(name) for name in ("grey", "white", "csf"))


@dataclass(frozen=True)
class Rendered:
    """An image and what is in it.

    Attributes
    ----------
    image : (s, a, r) float32, on the lattice of ``axes``; noise included
    axes : the lattice
    shown, base, labels : for `labels_at`: where each control point lies, the map, and its labels with lesions painted
    visible : for each lesion of the scene, whether its contrast suffices to be seen
    sample : values of random acquired voxels with the noise of the native matrix, for percentiles
    """

    image: Tensor
    axes: tuple[acq.Axis, acq.Axis, acq.Axis]
    shown: acq.Geometry
    base: Map
    labels: Tensor
    visible: tuple[bool, ...]
    sample: NDArray[np.float32]


def render(scene: Scene, head: Head, spacing_mm: tuple[float, ...] | None, grid: tuple[int, ...] | None) -> Rendered:
    """Compute the image of a scene.

    Parameters
    ----------
    spacing_mm, grid : spacing and size (S, A, R) of the training grid: axes that were acquired finer are averaged to it
        at once. ``None`` for the acquired matrix, from the fine map.
    """
    base = head.coarse if grid is not None else head.fine()
    prescription, look = scene.prescription, scene.look
    axes = tuple(
        acq.lattice(
            prescription,
            i,
            2.7 if grid is not None else 1.3,
            None if spacing_mm is None else spacing_mm[i],
            0 if grid is None else grid[i],
            look.taper,
        )
        for i in range(3)
    )
    share = float(np.prod([a.share for a in axes]))
    values, labels, visible = _paint_scene(scene, head, base, share)
    distortion = None
    if scene.protocol.family == "epi":
        distortion = acq.Distortion(head.field_ppm, head.coarse, _mm_per_ppm(scene))
    positions = [a.positions_mm for a in axes]
    beyond = 0
    if look.wrap:
        axis = prescription.phase_axis
        beyond = len(positions[axis]) // 4
        positions[axis] = acq.extended(positions[axis], beyond)
    extents = tuple(2 * float(np.abs(p).max()) + 2 for p in positions)
    shown = acq.geometry(prescription, scene.subject, (extents[0], extents[1], extents[2]), distortion)
    image = acq.sample(torch.from_numpy(values), base, shown, tuple(positions))
    if look.wrap:
        image = acq.fold(image, prescription.phase_axis, beyond)
    image = acq.separable(image, tuple(None if a.pool is None else torch.from_numpy(a.pool) for a in axes))  # type: ignore[arg-type]
    shading = acq.receive_field(
        np.random.default_rng(look.shading_seed),
        shown,
        scene.protocol.field_strength_t,
        0.75 if scene.protocol.family == "epi" else 0.4,
    )
    if shown.compression is not None:
        strength, mottle = _mottle(scene)
        texture = strength * mottle.standard_normal(shading.shape, dtype=np.float32)
        shading = shading * shown.compression * np.exp(texture)
    hats = tuple(acq.hat_matrix(c, _voxel_positions(a)) for c, a in zip(shown.controls, axes, strict=True))
    image = image.mul_(acq.separable(torch.from_numpy(shading), (hats[0], hats[1], hats[2]))).abs_()
    if look.ghost:
        axis = prescription.phase_axis
        image = acq.ghosts(image, axis, look.ghost, round(look.ghost_shift * image.shape[axis]))
    image = image.mul_(look.scale)
    image, sample = _noise(scene, image, share)
    three = (axes[0], axes[1], axes[2])
    return Rendered(image, three, shown, base, torch.from_numpy(labels), visible, sample)


def labels_at(rendered: Rendered, positions: tuple[NDArray[np.float64], ...]) -> NDArray[np.uint8]:
    """Labels at positions of the field of view: 0, 1 grey, 2 white, 3 CSF, 4 + i for lesion i. Nearest voxel."""
    found = acq.sample(rendered.labels, rendered.base, rendered.shown, positions, mode="nearest")
    return found.numpy().astype(np.uint8)


def _paint_scene(
    scene: Scene, head: Head, base: Map, share: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[bool, ...]]:
    """Signals in MNI space relative to white matter, labels, and which lesions can be seen."""
    look = scene.look
    signals = scene.protocol.signals(scene.tissues)
    for name, factor in zip(("fat", "marrow", "blood", "skin"), look.brightness, strict=True):
        signals[INDEX[name]] *= factor
    signals = signals / signals[INDEX["white"]]
    palette = _individual_palette(base.palette, scene.subject.atrophy, look.sharpness)
    tissue_signals = signals[: len(TISSUES)].copy()
    if look.removed == "scalp":
        tissue_signals[len(BRAIN) + 1 :] = 0
    values = np.take((palette @ tissue_signals).astype(np.float32), base.codes)
    brain = palette[:, BRAIN]
    row_labels = np.where(brain.sum(1) > 0.5, brain.argmax(1) + 1, 0).astype(np.float32)
    labels = np.take(row_labels, base.codes)
    z = base.origin_mm[2] + base.step_mm * np.arange(len(labels))
    y = base.origin_mm[1] + base.step_mm * np.arange(labels.shape[1])
    below = int(np.searchsorted(z, -73.0))  # the cord is not brain
    labels[:below] = 0
    orbit = (
        slice(int(np.searchsorted(z, -46.0)), int(np.searchsorted(z, -29.0))),
        slice(int(np.searchsorted(y, 24.0)), None),
    )
    front = labels[orbit]
    front[front == 2] = 0  # nor is the optic nerve
    if look.removed == "scalp":
        values[labels == 0] = 0
    visible = []
    sigma = float(np.hypot(np.sqrt(share) / look.snr, _mottle(scene)[0]))
    for i, plan in enumerate(scene.lesions):
        contrast = abs(paint(plan, base, signals, values, labels, LABEL + i))
        visible.append(bool(contrast > MIN_CONTRAST_TO_NOISE * sigma and contrast > MIN_CONTRAST))
    if look.removed == "face":
        slope = 0.7 * (y[None, :] - 50) - (z[:, None] + 28)
        values[(slope > 0) & (y[None, :] > -10)] = 0
    if scene.protocol.family in ("epi", "gre2d", "gre3d"):
        values *= _dropout(scene, head, base)
    return values, labels, tuple(visible)


def _individual_palette(palette: NDArray[np.float32], atrophy: float, sharpness: float) -> NDArray[np.float32]:
    """Change the mixtures themselves: wider or narrower sulci, sharper or softer borders."""
    changed = palette**sharpness
    grey, _, csf = BRAIN
    mixed = (changed[:, csf] > 0) & (changed[:, grey] > 0)
    changed[mixed, csf] *= atrophy**2
    return changed / changed.sum(1, keepdims=True)


def _dropout(scene: Scene, head: Head, base: Map) -> NDArray[np.float32]:
    """Signal left in a gradient echo where the field varies across a voxel (Reichenbach 1997, JMRI 7:266)."""
    step = max(scene.prescription.thickness_mm, *scene.prescription.step_mm)
    hertz_per_mm = acq.GAMMA_HZ_PER_PPM_T * scene.protocol.field_strength_t * head.field_gradient_ppm_mm
    cycles = hertz_per_mm * np.float32(step * scene.protocol.te / 1000)
    left = np.exp(-2.2 * cycles * cycles)
    if base is not head.coarse:
        left = left.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return np.asarray(left, np.float32)


def _mottle(scene: Scene) -> tuple[float, np.random.Generator]:
    """Relative strength of veins, flow and ghosts in echo-planar images, and what draws its pattern."""
    generator = np.random.default_rng(scene.look.shading_seed + 1)
    return (generator.uniform(0.02, 0.12) if scene.protocol.family == "epi" else 0.0), generator


def _mm_per_ppm(scene: Scene) -> float:
    """Echo-planar shift: field offset x time between echoes x encoded lines x voxel."""
    prescription, protocol = scene.prescription, scene.protocol
    lines, step = prescription.shape[prescription.phase_axis], prescription.step_mm[prescription.phase_axis]
    acceleration = 1 if scene.seed % 3 else 2
    polarity = 1 if scene.seed % 2 else -1
    hertz = acq.GAMMA_HZ_PER_PPM_T * protocol.field_strength_t
    return polarity * hertz * protocol.echo_spacing / 1000 * lines / acceleration * step


def _noise(scene: Scene, image: Tensor, share: float) -> tuple[Tensor, NDArray[np.float32]]:
    look = scene.look
    sigma = look.scale / look.snr
    generator = torch.Generator().manual_seed(scene.seed & 0x7FFFFFFFFFFFFFFF)
    flat = image.reshape(-1)
    chosen = torch.randint(flat.numel(), (WINDOW_SAMPLES,), generator=generator)
    clean = flat[chosen]
    noisy = acq.magnitude_noise(image, sigma, share, generator)
    sample = acq.magnitude_noise(clean, sigma, 1.0, generator)
    if look.background != "noise":
        quiet = 0.0 if look.background == "masked" else 0.25
        level = max(2.0 * sigma, 0.03 * look.scale)
        noisy = torch.where(image < level, noisy * quiet, noisy)
        sample = torch.where(clean < level, sample * quiet, sample)
    return noisy, sample.numpy()


def _voxel_positions(axis: acq.Axis) -> NDArray[np.float64]:
    return acq.centred(axis.voxels, axis.step_mm)
