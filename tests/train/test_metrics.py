"""Figures against scikit-learn, counting and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, r2_score, roc_auc_score

from decipher_rt.train.metrics import (
    accuracy,
    auroc,
    box_iou,
    calibration_error,
    centre_error_mm,
    dice,
    explained,
    mean_absolute_error,
    overlap_counts,
    rounded,
)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    truth, score = rng.random(60) < 0.3, np.round(rng.normal(size=60), 1)
    pairs = [(p > n) + 0.5 * (p == n) for p in score[truth] for n in score[~truth]]
    assert auroc(truth, score) == pytest.approx(np.mean(pairs))
    two = np.stack([-score, score], axis=1)
    assert auroc(truth.astype(int), two) == pytest.approx(np.mean(pairs))
    assert auroc(np.ones(5), np.arange(5.0)) is None


def test_auroc_of_several_labels_is_scikit_learns_macro_average() -> None:
    rng = np.random.default_rng(1)
    truth, probabilities = rng.integers(0, 4, 80), rng.dirichlet(np.ones(4), 80)
    assert auroc(truth, probabilities) == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    fewer = truth % 2 * 3  # labels 1 and 2 never come
    expected = [roc_auc_score(fewer == label, probabilities[:, label]) for label in (0, 3)]
    assert auroc(fewer, probabilities) == pytest.approx(np.mean(expected))


def test_accuracy_error_and_explained_variance() -> None:
    assert accuracy(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])) == pytest.approx(2 / 3)
    truth, value = np.array([1.0, 2.0, 4.0]), np.array([1.5, 1.0, 4.0])
    assert mean_absolute_error(truth, value) == pytest.approx(0.5)
    assert explained(truth, value) == pytest.approx(r2_score(truth, value))
    assert explained(np.ones(3), value) is None
    assert accuracy(np.zeros(0, int), np.zeros((0, 2))) is None
    assert mean_absolute_error(np.zeros(0), np.zeros(0)) is None


def test_dice_is_the_f1_score_of_voxels() -> None:
    rng = np.random.default_rng(2)
    truth, answer = rng.integers(0, 3, (5, 6, 7)), rng.integers(0, 4, (5, 6, 7))
    counts = overlap_counts(truth.astype(np.uint8), answer.astype(np.uint8), 5)
    expected = f1_score(truth.ravel(), answer.ravel(), labels=range(4), average=None, zero_division=0)
    assert dice(counts)[:4] == pytest.approx(expected)
    assert np.isnan(dice(counts)[4])  # in neither
    assert dice(counts)[3] == 0.0  # in the answer alone


def test_calibration_error_of_a_known_case() -> None:
    confidence = np.repeat([0.55, 0.95], 100)
    right = np.concatenate([np.arange(100) < 55, np.arange(100) < 75])  # the second bin is 0.2 too sure
    assert calibration_error(confidence, right) == pytest.approx(0.1)


def test_overlap_of_boxes_is_that_of_their_voxels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        low, size = rng.integers(0, 6, (2, 3)), rng.integers(1, 7, (2, 3))
        masks = np.zeros((2, 14, 14, 14), bool)
        for mask, a, n in zip(masks, low, size, strict=True):
            mask[tuple(slice(x, x + y) for x, y in zip(a, n, strict=True))] = True
        boxes = np.concatenate([low + (size - 1) / 2, size], axis=1)
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert box_iou(boxes[0], boxes[1]) == pytest.approx(expected)
    assert box_iou(np.zeros(6), np.zeros(6)) == 0.0


def test_centre_error_counts_millimetres() -> None:
    a, b = np.array([1.0, 2, 3, 9, 9, 9]), np.array([[1.0, 2, 3, 1, 1, 1], [4, 2, 7, 1, 1, 1]])
    assert centre_error_mm(a[None], b, (2.0, 1.0, 0.5)) == pytest.approx([0.0, np.hypot(6, 2)])


def test_no_nan_reaches_json() -> None:
    assert rounded(float("nan")) is None
    assert rounded(None) is None
    assert rounded(0.123456) == 0.1235
