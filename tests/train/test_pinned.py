"""Which run a list makes: what may change on disk or in it while a run is resumed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import nibabel
import numpy as np

from decipher_rt.train.sources import SourceConfig, pinned

from .manifests import TURNED, again, masked, write_csv


def test_self_supervision_is_the_same_run_whatever_is_said_of_the_images(cohort: Path) -> None:
    config = masked(cohort)
    first, whole = pinned(again(config), labels=False), pinned(again(config))
    write_csv(cohort, "c.nii.gz,p,train,,3", "a,p,train,,4", "b,q,test,,5", header="path,patient,split,mask,age")
    assert pinned(again(config), labels=False) == first
    assert pinned(again(config)) != whole
    write_csv(cohort, "c.nii.gz,p,train,,3", "b,p,train,,4", header="path,patient,split,mask,age")
    assert pinned(again(config), labels=False) != first
    write_csv(cohort, "c.nii.gz,r,train,,3", "a,r,train,,4", header="path,patient,split,mask,age")
    assert pinned(again(config), labels=False) != first  # a run keeps whom it saw


def test_other_images_or_masks_under_the_same_names_are_another_run(cohort: Path) -> None:
    config = masked(cohort)
    first, words = pinned(again(config)), pinned(again(config), images=False)
    mask, size = cohort / "mask.nii", (cohort / "mask.nii").stat().st_size
    nibabel.save(nibabel.Nifti1Image(np.eye(16, dtype=np.uint8)[:14, :, None].repeat(12, 2), TURNED), mask)
    assert mask.stat().st_size == size
    second = pinned(again(config))
    slice_ = min((cohort / "a").iterdir())
    slice_.write_bytes(slice_.read_bytes() + b"\0")
    assert len({first.listed, second.listed, pinned(again(config)).listed}) == 3
    assert pinned(again(config), images=False) == words  # what looks at none is the same run


def test_a_run_is_the_same_wherever_its_series_lie_and_since_when(cohort: Path, tmp_path: Path) -> None:
    config = masked(cohort)
    moved = tmp_path / "mounted" / "elsewhere"
    shutil.copytree(cohort, moved, ignore=shutil.ignore_patterns("mounted"), copy_function=shutil.copyfile)
    there = dataclasses.replace(config, path=str(moved / "cohort.csv"))
    assert pinned(there).listed == pinned(config).listed
    whole = [f"{moved}/c.nii.gz,p,train,{moved}/mask.nii", f"{moved}/a,p,train,"]  # listed by whole paths
    write_csv(moved, *whole, header="path,patient,split,mask")
    assert pinned(again(there)).listed == pinned(config).listed
    (moved / "a").rename(moved / "other")
    write_csv(moved, "c.nii.gz,p,train,mask.nii", "other,p,train,", header="path,patient,split,mask")
    assert pinned(again(there)).listed != pinned(config).listed


def test_another_base_under_the_same_name_is_another_run(tmp_path: Path) -> None:
    base = tmp_path / "brain.nii"
    config = SourceConfig(anatomy=str(base))
    found = set()
    for content in (b"one", b"other"):
        base.write_bytes(content)
        found |= {pinned(config).listed, pinned(config, labels=False).listed, pinned(config, images=False).listed}
    assert len(found) == 2
    assert pinned(SourceConfig()).listed not in found
