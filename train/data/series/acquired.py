"""Acquire a scene: the same geometry, contrast and lesions as the sample on the training grid, at the native matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.volume import Acquisition

from .. import acquisition as acq
from ..anatomy import Anatomy
from ..lesions import LABEL
from ..render import labels_at, render
from ..sample import Lesion, Truth, describe_labels
from ..scene import Scene, draw_scene
from ..simulator import MIN_LESION_ML

# Patient axis (S, A, R = 0, 1, 2) and direction (+1 towards it) along which slices, rows and columns follow one
# another in the usual views: axial seen from below, coronal from the front, sagittal from the left.
VIEWS: tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], ...] = (
    ((0, 1), (1, -1), (2, -1)),
    ((1, 1), (0, -1), (2, -1)),
    ((2, 1), (0, -1), (1, -1)),
)
POSITIONS = ("HFS", "HFP", "FFS", "HFDR", "HFDL")  # PS3.3 C.7.3.1.1.2
POSITION_SHARES = (0.86, 0.05, 0.03, 0.03, 0.03)


@dataclass(frozen=True)
class AcquiredSeries:
    """A series in the axes of its acquisition.

    Attributes
    ----------
    voxels : (D, H, W) = (slice, row, column) uint16
    affine_lps_mm : (4, 4), (d, h, w, 1) to LPS mm, voxel centres
    tissue : (D, H, W) uint8, indices into `decipher_rt.train.data.sample.LABELS`
    labels, volumes_ml, lesions, header : as in `Sample`; lesion sizes run along the image's S, A, R axes
    thickness_mm : of a slice; slices lie further apart where there are gaps
    patient_position : DICOM's code; it decides which way up the images are stored, not where the patient's axes are
    phase_axis : "ROW" or "COL" (0018,1312)
    scene : what was drawn
    """

    voxels: NDArray[np.uint16]
    affine_lps_mm: NDArray[np.float64]
    tissue: NDArray[np.uint8]
    labels: Truth
    volumes_ml: dict[str, float]
    lesions: tuple[Lesion, ...]
    header: Acquisition
    thickness_mm: float
    patient_position: str
    phase_axis: str
    scene: Scene


def acquire(seed: int, anatomy: Anatomy) -> AcquiredSeries:
    """Acquire the head that ``simulate(seed, anatomy, ..., kind="head")`` shows, at its native matrix."""
    return acquire_scene(draw_scene(seed, anatomy), anatomy)


def acquire_scene(scene: Scene, anatomy: Anatomy) -> AcquiredSeries:
    """Acquire a scene at its native matrix. A 1 mm volume takes some seconds."""
    prescription = scene.prescription
    rendered = render(scene, anatomy.heads[scene.subject.head], None, None)
    positions = tuple(acq.centred(n, d) for n, d in zip(prescription.shape, prescription.step_mm, strict=True))
    affine = prescription.affine_lps_mm()
    names = [(plan.region, plan.side, plan.kind) for plan in scene.lesions]
    tissue, volumes, lesions = describe_labels(
        labels_at(rendered, positions), affine, prescription.step_mm, rendered.visible, names, LABEL, MIN_LESION_ML
    )
    rng = np.random.default_rng([scene.seed, 0xD1C0])
    position = POSITIONS[int(rng.choice(len(POSITIONS), p=POSITION_SHARES))]
    view = VIEWS[prescription.slice_axis]
    slices, rows, columns = view
    flip = [slices[1] * int(rng.choice([1, -1])), rows[1], columns[1]]
    if position == "HFP":  # face down on the table, the console still shows the table below
        flip = [flip[0], *(_prone(direction, axis) for axis, direction in (rows, columns))]
    order = (slices[0], rows[0], columns[0])
    stored = np.clip(np.rint(rendered.image.numpy()), 0, 65535).astype(np.uint16)
    return AcquiredSeries(
        voxels=_view(stored, order, flip),
        affine_lps_mm=affine @ _index_map(prescription.shape, order, flip),
        tissue=_view(tissue, order, flip),
        labels=Truth(scene.protocol.sequence, bool(lesions), "head"),
        volumes_ml=volumes,
        lesions=lesions,
        header=scene.protocol.acquisition(),
        thickness_mm=prescription.thickness_mm,
        patient_position=position,
        phase_axis="COL" if prescription.phase_axis == rows[0] else "ROW",
        scene=scene,
    )


def _prone(direction: int, axis: int) -> int:
    """Turn the left-right and front-back directions by half a turn; the long axis stays."""
    return direction if axis == 0 else -direction


def _view(array: NDArray[Any], order: tuple[int, int, int], flip: list[int]) -> NDArray[Any]:
    return np.ascontiguousarray(array.transpose(order)[tuple(slice(None, None, f) for f in flip)])


def _index_map(shape: tuple[int, int, int], order: tuple[int, int, int], flip: list[int]) -> NDArray[np.float64]:
    """Map (d, h, w, 1) of the stored series to the box's (s, a, r, 1)."""
    out = np.zeros((4, 4))
    out[3, 3] = 1.0
    for stored, (axis, direction) in enumerate(zip(order, flip, strict=True)):
        out[axis, stored] = direction
        out[axis, 3] = 0.0 if direction > 0 else shape[axis] - 1
    return out
