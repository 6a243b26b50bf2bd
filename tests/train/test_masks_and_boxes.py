"""Masks and boxes of a manifest: laid over the series by way of the patient, read anew when they change."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from decipher_rt.train.sources import Box, SourceConfig
from decipher_rt.train.sources.rows import SourceError

from .manifests import PIECES, TURNED, as_listed, opened, write_csv


def test_masks_and_boxes_come_with_a_manifest(cohort: Path) -> None:
    labels = np.random.default_rng(5).integers(0, 5, (14, 16, 12), np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, TURNED), cohort / "mask.nii.gz")
    box = '"[{""center_lps_mm"": [1, -2.5, 3], ""size_mm"": [4, 5, 6.5], ""label"": ""cyst""}]"'
    rows = (f"c.nii.gz,p1,train,mask.nii.gz,{box}", "a,p1,train,,[]", "b,p1,train,n/a,")
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, *rows, header="path,patient,split,mask,boxes")))
    first, second, third = as_listed(config, opened(config, cohort / "cache"))
    assert first.boxes == (Box((1.0, -2.5, 3.0), (4.0, 5.0, 6.5), "cyst"),)
    assert (second.boxes, second.tissue, third.boxes, third.tissue) == ((), None, None, None)
    assert first.tissue is not None
    # The label at the centre of each voxel, by way of patient space: LPS to RAS, then the mask's own axes.
    index = np.stack(np.meshgrid(*map(np.arange, PIECES.grid_shape), indexing="ij"), -1).reshape(-1, 3)
    ras = (np.c_[index, np.ones(len(index))] @ first.affine_lps_mm.T) * [-1, -1, 1, 1]
    inside = ras @ np.linalg.inv(TURNED).T[:, :3]
    nearest = np.rint(inside).astype(int)
    there = ((nearest >= 0) & (nearest < labels.shape)).all(1)
    clear = (np.abs(inside - nearest) < 0.49).all(1) & there
    assert clear.sum() > 500
    assert (clear & ((inside < 0) | (inside > np.array(labels.shape) - 1)).any(1)).sum() > 50  # beyond the last centres
    assert np.array_equal(first.tissue.reshape(-1)[clear], labels[tuple(nearest[clear].T)])
    outside = ((inside < -0.51) | (inside > np.array(labels.shape) - 0.49)).any(1)
    assert outside.any()
    assert not first.tissue.reshape(-1)[outside].any()


def test_another_mask_is_read_and_a_corrected_box_is_not(cohort: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((14, 16, 12), np.uint8), TURNED), cohort / "mask.nii.gz")
    header = "path,patient,split,mask,boxes"
    config = SourceConfig(kind="manifest", path=str(write_csv(cohort, "c.nii.gz,p,train,mask.nii.gz,", header=header)))
    opened(config, cohort / "cache")
    write_csv(cohort, "c.nii.gz,p,train,mask.nii.gz,[]", header=header)
    assert opened(config, cohort / "cache")[0].boxes == ()
    assert len(list((cohort / "cache").rglob("*.safetensors"))) == 1
    nibabel.save(nibabel.Nifti1Image(np.full((14, 16, 12), 2, np.uint8), TURNED), cohort / "mask.nii.gz")
    assert opened(config, cohort / "cache")[0].tissue.max() == 2  # type: ignore[union-attr]


def test_a_label_between_the_centres_of_the_grid_is_none(cohort: Path) -> None:
    """What is smaller than a voxel of the grid may be missed; that it is of another series must not be said."""
    small, place = np.zeros((4, 4, 4), np.uint8), np.diag([0.5, 0.5, 0.5, 1.0])
    small[1, 1, 1] = 1
    place[:3, 3] = np.array([11, 9, 10.5]) - 0.5  # the middle of the series, where eight voxels of the grid meet
    nibabel.save(nibabel.Nifti1Image(small, place), cohort / "small.nii")
    path = write_csv(cohort, "c.nii.gz,p,train,small.nii", header="path,patient,split,mask")
    tissue = opened(SourceConfig(kind="manifest", path=str(path)), cohort / "cache")[0].tissue
    assert tissue is not None
    assert not tissue.any()


@pytest.mark.parametrize(
    ("mask", "boxes", "said"),
    [
        ("absent.nii", "", r"column mask: .*absent.nii does not exist"),
        ("cohort.csv", "", r"column mask: .*cohort.csv: "),
        ("half.nii.gz", "", r"column mask: .*half.nii.gz: holds other values than the whole numbers 0 to 255"),
        ("nan.nii.gz", "", r"column mask: .*nan.nii.gz: holds voxels that are not finite"),
        ("c.nii.gz", "", r"column mask: .*c.nii.gz: holds 2 volumes; give a label image with one"),
        ("cut.nii.gz", "", r"column mask: .*cut.nii.gz: "),
        ("far.nii.gz", "", r"column mask: .*far.nii.gz: none of its labels lies in the field of view"),
        ("", "[", r"column boxes: not JSON"),
        ("", "[" * 100_000, r"column boxes: not JSON"),
        ("", "3", r"column boxes: int, expected a list"),
        ("", "[3]", r"column boxes: box 1 is 3, expected center_lps_mm, size_mm"),
        (
            "",
            '"[{""center_lps_mm"": [1, 2], ""size_mm"": [1, 1, 1]}]"',
            r"center_lps_mm of box 1 is \[1, 2\], expected",
        ),
        ("", '"[{""center_lps_mm"": [1, 2, NaN], ""size_mm"": [1, 1, 1]}]"', r"center_lps_mm of box 1 is .*nan"),
        ("", '"[{""center_lps_mm"": [1, 2, 3], ""size_mm"": [1, 0, 1]}]"', r"size_mm of box 1 is .*more than 0 mm"),
    ],
)
def test_broken_masks_and_boxes_are_named(cohort: Path, mask: str, boxes: str, said: str) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), 0.5, np.float32), TURNED), cohort / "half.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), TURNED), cohort / "nan.nii.gz")
    (cohort / "cut.nii.gz").write_bytes((cohort / "half.nii.gz").read_bytes()[:-20])
    far = TURNED + np.array([[0, 0, 0, 500], [0] * 4, [0] * 4, [0] * 4])
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), far), cohort / "far.nii.gz")
    path = write_csv(cohort, f"c.nii.gz,p1,train,{mask},{boxes}", header="path,patient,split,mask,boxes")
    with pytest.raises(SourceError, match=f"line 2, .*{said}"):
        opened(SourceConfig(kind="manifest", path=str(path)), cohort / "cache")
