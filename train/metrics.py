"""Figures that models are judged by. Each takes arrays over a whole split and gives plain floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10


def accuracy(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float | None:
    """Return the share of (N,) truths that the largest of (N, L) probabilities names; None of no examples."""
    return float((probabilities.argmax(axis=1) == truth).mean()) if len(truth) else None


def auroc(truth: NDArray[Any], score: NDArray[np.floating]) -> float | None:
    """Return the area under the ROC curve.

    Parameters
    ----------
    truth : ndarray, shape (N,)
        True or 1 for positives; for (N, L) scores the index of the right label.
    score : ndarray, shape (N,) or (N, L)
        Higher for positives. Of more than two labels, each that is present is told from the rest, and the areas are
        averaged; of two labels the second is the positive.

    Returns
    -------
    float or None
        None where only one class is present.
    """
    from sklearn.metrics import roc_auc_score  # a second of import that most commands do without

    if score.ndim == 2 and score.shape[1] == 2:
        score = score[:, 1]
    if score.ndim == 1:
        positive = np.asarray(truth).astype(bool)
        return float(roc_auc_score(positive, score)) if 0 < positive.mean() < 1 else None
    present = np.unique(truth)
    if len(present) < 2:
        return None
    return float(np.mean([roc_auc_score(truth == label, score[:, label]) for label in present]))


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over ten equal bins of confidence (arXiv 1706.04599, equation 3)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def mean_absolute_error(truth: NDArray[np.floating], value: NDArray[np.floating]) -> float | None:
    """Return the mean absolute error in the unit of both, (N,) each; None of no examples."""
    return float(np.abs(truth - value).mean()) if len(truth) else None


def explained(truth: NDArray[np.floating], value: NDArray[np.floating]) -> float | None:
    """Return R squared, the share of the variance of ``truth`` (N,) that is explained; None where it has none."""
    spread = float(((truth - truth.mean()) ** 2).sum()) if len(truth) else 0.0
    return 1.0 - float(((truth - value) ** 2).sum()) / spread if spread > 0 else None


def overlap_counts(truth: NDArray[np.integer], answer: NDArray[np.integer], labels: int) -> NDArray[np.int64]:
    """Count what Dice needs of one label map.

    Returns
    -------
    ndarray, shape (labels, 3), int64
        Of each label: voxels where truth and answer agree on it, voxels of the truth, voxels of the answer.
    """
    joint = np.bincount(truth.ravel().astype(np.int64) * labels + answer.ravel(), minlength=labels**2)
    joint = joint.reshape(labels, labels)
    return np.stack([joint.diagonal(), joint.sum(axis=1), joint.sum(axis=0)], axis=1).astype(np.int64)


def dice(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return Dice (2 |A and B| / (|A| + |B|)) from counts (..., 3); NaN where neither has a voxel.

    Sum the counts over series first for Dice over all voxels of a split, or take the mean of each series' Dice.
    """
    counts = np.asarray(counts, np.float64)
    both = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], both, out=np.full(both.shape, np.nan), where=both > 0)


def box_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the intersection over union of axis-aligned boxes (..., 6): centre and size along three axes."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low = np.maximum(a[..., :3] - a[..., 3:] / 2, b[..., :3] - b[..., 3:] / 2)
    high = np.minimum(a[..., :3] + a[..., 3:] / 2, b[..., :3] + b[..., 3:] / 2)
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = a[..., 3:].prod(axis=-1) + b[..., 3:].prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros(union.shape), where=union > 0)


def centre_error_mm(
    a: NDArray[np.floating], b: NDArray[np.floating], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Return the distance in mm of the centres of boxes (..., 6) in voxels of ``spacing_mm``."""
    offset = (np.asarray(a, np.float64)[..., :3] - np.asarray(b, np.float64)[..., :3]) * np.asarray(spacing_mm)
    return np.asarray(np.linalg.norm(offset, axis=-1))


def rounded(value: float | None) -> float | None:
    """Return four decimals of a figure: none has more than that to say. NaN becomes None, as JSON has no NaN."""
    return None if value is None or np.isnan(value) else round(float(value), 4)
