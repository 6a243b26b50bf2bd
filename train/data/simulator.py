"""The simulator: a seed becomes a sample on the training grid, or a series as a scanner would have acquired it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from decipher_rt.manifest import Preprocessing

from . import acquisition as acq
from . import not_heads
from .anatomy import Anatomy
from .lesions import LABEL
from .render import Rendered, labels_at, render
from .sample import KINDS, Sample, Truth, describe_labels
from .scene import Scene, draw_scene

KIND_SHARES = (0.85, 0.05, 0.02, 0.05, 0.03)
MIN_LESION_ML = 0.06  # of a lesion within the field of view, or it does not count as present


def simulate(seed: int, anatomy: Anatomy, preprocessing: Preprocessing, *, kind: str | None = None) -> Sample:
    """Simulate one series on the training grid.

    Parameters
    ----------
    seed : int
        The same seed, anatomy and spec give the same sample.
    anatomy : Anatomy
        From `load_anatomy`.
    preprocessing : Preprocessing
        Grid size, spacing and percentiles.
    kind : str, optional
        One of ``KINDS``; drawn where not given, 85 % heads.
    """
    if kind is None:
        kind = draw_kind(seed)
    if kind == "head":
        return simulate_scene(draw_scene(seed, anatomy), anatomy, preprocessing)
    if kind == "scrambled":
        return not_heads.scramble(
            seed, simulate_scene(draw_scene(seed, anatomy), anatomy, preprocessing), preprocessing
        )
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    return not_heads.simulate_other(seed, kind, preprocessing)


def draw_kind(seed: int) -> str:
    """Draw what a seed shows where nobody says it."""
    return KINDS[int(np.random.default_rng([seed, 0x4B494E44]).choice(len(KINDS), p=KIND_SHARES))]


def simulate_scene(scene: Scene, anatomy: Anatomy, preprocessing: Preprocessing) -> Sample:
    """Compute a scene on the training grid."""
    spacing, shape = preprocessing.spacing_mm, preprocessing.grid_shape
    head = anatomy.heads[scene.subject.head]
    rendered = render(scene, head, spacing, shape)
    low, high = np.percentile(rendered.sample, preprocessing.window_percentiles, method="inverted_cdf")
    fov = scene.prescription.fov_mm
    counts = [min(g, max(1, int(np.floor(f / s + 0.501)))) for g, f, s in zip(shape, fov, spacing, strict=True)]
    starts = [(g - c) // 2 for g, c in zip(shape, counts, strict=True)]
    place = tuple(slice(a, a + c) for a, c in zip(starts, counts, strict=True))
    volume = np.full(shape, low, np.float32)
    volume[place] = resample(rendered, counts, spacing).numpy()
    positions = tuple(acq.centred(c, s) for c, s in zip(counts, spacing, strict=True))
    labels = np.zeros(shape, np.uint8)
    labels[place] = labels_at(rendered, positions)
    affine = grid_affine(scene, counts, starts, spacing)
    names = [(plan.region, plan.side, plan.kind) for plan in scene.lesions]
    tissue, volumes, lesions = describe_labels(labels, affine, spacing, rendered.visible, names, LABEL, MIN_LESION_ML)
    return Sample(
        volume=volume,
        window=np.array([low, max(high, low + 1e-3)], np.float32),
        labels=Truth(scene.protocol.sequence, bool(lesions), "head"),
        tissue=tissue,
        volumes_ml=volumes,
        lesions=lesions,
        header=scene.protocol.acquisition(),
        affine_lps_mm=affine,
        facts=scene_facts(scene),
    )


def resample(rendered: Rendered, counts: list[int], spacing: tuple[float, ...]) -> torch.Tensor:
    """Bring the rendered image to ``counts`` grid voxels, centred: interpolate coarse axes, crop the others."""
    image = rendered.image
    matrices: list[torch.Tensor | None] = []
    for i, axis in enumerate(rendered.axes):
        if axis.step_mm == spacing[i]:
            extra = (axis.voxels - counts[i]) // 2
            image = image.narrow(i, extra, counts[i])
            matrices.append(None)
        else:
            matrices.append(acq.resize_matrix(axis.voxels, axis.step_mm, counts[i], spacing[i]))
    return acq.separable(image.contiguous(), (matrices[0], matrices[1], matrices[2]))


def grid_affine(scene: Scene, counts: list[int], starts: list[int], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Affine of the grid, (d, h, w, 1) to LPS mm."""
    prescription = scene.prescription
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([-1.0, -1.0, 1.0]) @ prescription.axes.T) * np.array(spacing)
    middle = np.array(starts) + (np.array(counts) - 1) / 2
    affine[:3, 3] = np.array([-1.0, -1.0, 1.0]) * prescription.centre_mm - affine[:3, :3] @ middle
    return affine


def scene_facts(scene: Scene) -> dict[str, str | float]:
    """Drawn values that reports and evaluation use."""
    enlarged = scene.subject.ventricles
    return {
        "plane": scene.prescription.plane,
        "family": scene.protocol.family,
        "ventricles": "enlarged" if enlarged > 0.2 else ("narrow" if enlarged < -0.15 else "normal"),
        "ghost": scene.look.ghost,
        "snr": scene.look.snr,
        "removed": scene.look.removed,
        "slices": float(scene.prescription.shape[scene.prescription.slice_axis]),
        "slice_step_mm": scene.prescription.step_mm[scene.prescription.slice_axis],
    }
