"""What the simulator gives: a sample on the training grid with everything that is true of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decipher_rt.volume import Acquisition

KINDS = ("head", "phantom", "noise", "other_anatomy", "scrambled")
LABELS = ("background", "grey", "white", "csf", "lesion")


@dataclass(frozen=True)
class Lesion:
    """One visible lesion.

    Attributes
    ----------
    center_lps_mm : middle of its bounding box in DICOM patient coordinates
    size_mm : extent of the box along the image's S, A, R axes
    center_voxel : middle of the box, as an index (may be halves) into the image in S, A, R order
    volume_ml : of its voxels
    region : lobe or region, e.g. "frontal lobe"
    side : "left", "right" or "midline", the patient's
    kind : "plaque", "tumour", "lacune" or "infarct"
    """

    center_lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    center_voxel: tuple[float, float, float]
    volume_ml: float
    region: str
    side: str
    kind: str


@dataclass(frozen=True)
class Truth:
    """Labels of a sample: ``sequence`` is one of T1w, T2w, PDw, FLAIR, T2*w, or None where it is not a head."""

    sequence: str | None
    lesion: bool
    kind: str


@dataclass(frozen=True)
class Sample:
    """One simulated series on the training grid.

    Attributes
    ----------
    volume : (D, H, W) float32, axes to S, A, R, not normalised; ``window[0]`` outside the field of view
    window : (2,) float32, the percentiles of all acquired voxels that the runtime would find
    labels : Truth
    tissue : (D, H, W) uint8, indices into ``LABELS``
    volumes_ml : grey, white, csf, lesion, brain (grey + white + lesion) within the field of view
    lesions : the visible ones
    header : what a DICOM header would say
    affine_lps_mm : (4, 4), (d, h, w, 1) to LPS mm
    facts : plane, ventricles, artefacts and other drawn values, for evaluation
    """

    volume: NDArray[np.float32]
    window: NDArray[np.float32]
    labels: Truth
    tissue: NDArray[np.uint8]
    volumes_ml: dict[str, float]
    lesions: tuple[Lesion, ...]
    header: Acquisition
    affine_lps_mm: NDArray[np.float64]
    facts: dict[str, str | float] = field(default_factory=dict)


def describe_labels(
    labels: NDArray[np.uint8],
    affine_lps_mm: NDArray[np.float64],
    step_mm: tuple[float, ...],
    visible: tuple[bool, ...],
    names: list[tuple[str, str, str]],
    first_label: int,
    min_ml: float,
) -> tuple[NDArray[np.uint8], dict[str, float], tuple[Lesion, ...]]:
    """Turn a label map with one label a lesion into the truth: final labels, volumes, and lesions with their boxes.

    A lesion that cannot be seen, or of which less than ``min_ml`` lies in the field of view, is not a lesion: its
    voxels become white matter again, which they are but for a change that nobody sees.

    Parameters
    ----------
    labels : (D, H, W), S, A, R axes
    names : (region, side, kind) of each lesion
    """
    voxel_ml = float(np.prod(step_mm)) / 1000
    final = np.minimum(labels, first_label)
    lesions = []
    for i, seen in enumerate(visible):
        where = np.argwhere(labels == first_label + i)
        if not len(where):
            continue
        volume = len(where) * voxel_ml
        if not seen or volume < min_ml:
            final[tuple(where.T)] = LABELS.index("white")
            continue
        low, high = where.min(0), where.max(0)
        centre = (low + high) / 2
        lps = affine_lps_mm[:3, :3] @ centre + affine_lps_mm[:3, 3]
        size = (high - low + 1) * np.array(step_mm)
        region, side, kind = names[i]
        lesions.append(Lesion(_triple(lps), _triple(size), _triple(centre), volume, region, side, kind))
    counts = np.bincount(final.ravel(), minlength=len(LABELS))
    volumes = {name: float(counts[i] * voxel_ml) for i, name in enumerate(LABELS) if i}
    volumes["brain"] = volumes["grey"] + volumes["white"] + volumes["lesion"]
    return final, volumes, tuple(lesions)


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in values)
    return a, b, c
