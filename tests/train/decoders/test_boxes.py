"""Boxes: patient millimetres to grid voxels against the simulator's own truth, overlaps against counted voxels."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decipher_rt.train.data.sample import LABELS, describe_labels
from decipher_rt.train.decoders.boxes import box_to_voxels, generalised_iou, overlap, patch_centres


def test_a_box_in_millimetres_comes_back_in_voxels(synthetic: SimpleNamespace) -> None:
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[3:9, 10:12, 20:27] = LABELS.index("lesion")
    spacing = (3.0, 1.0, 1.25)
    affine = synthetic.oblique_affine(spacing)
    _, _, lesions = describe_labels(
        labels, affine, spacing, (True,), [("lobe", "left", "plaque")], LABELS.index("lesion"), 0.0
    )
    box = box_to_voxels(lesions[0].center_lps_mm, lesions[0].size_mm, affine)
    assert box == pytest.approx([5.5, 10.5, 23.0, 6, 2, 7], abs=1e-4)


def test_generalised_iou_is_that_of_counted_voxels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        low, size = rng.integers(0, 8, (2, 3)), rng.integers(1, 7, (2, 3))
        masks = np.zeros((2, 16, 16, 16), bool)
        for mask, a, n in zip(masks, low, size, strict=True):
            mask[tuple(slice(x, x + y) for x, y in zip(a, n, strict=True))] = True
        where = np.argwhere(masks.any(axis=0))
        hull = np.prod(where.max(axis=0) - where.min(axis=0) + 1)
        shared, union = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
        boxes = torch.from_numpy(np.concatenate([low + (size - 1) / 2, size], axis=1))
        assert float(generalised_iou(boxes[0], boxes[1])) == pytest.approx(shared / union - (hull - union) / hull)


def test_overlap_with_patches_counts_voxels() -> None:
    centres = patch_centres((2, 3, 4), (4, 3, 2))
    box = np.array([3.5, 4.0, 2.0, 4, 3, 5], np.float32)  # voxels 2..5, 3..5, 0..4
    inside = np.zeros((8, 9, 8), bool)
    inside[2:6, 3:6, 0:5] = True
    counted = inside.reshape(2, 4, 3, 3, 4, 2).sum(axis=(1, 3, 5)).ravel()
    assert overlap(centres, (4, 3, 2), box) == pytest.approx(counted)
    assert centres[0] == pytest.approx([1.5, 1.0, 0.5])


def test_boxes_of_examples_enclose_their_bright_voxels(make_shape: Callable) -> None:
    for index in range(40):
        example = make_shape(index)
        if example.boxes:
            box = box_to_voxels(example.boxes[0].center_lps_mm, example.boxes[0].size_mm, example.affine_lps_mm)
            where = np.argwhere(example.tissue == LABELS.index("lesion"))
            assert box[:3] == pytest.approx((where.min(0) + where.max(0)) / 2, abs=1e-3)
            assert box[3:] == pytest.approx(where.max(0) - where.min(0) + 1, abs=1e-3)
