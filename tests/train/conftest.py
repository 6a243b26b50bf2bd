"""What tests of sources share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest


@pytest.fixture
def cohort(tmp_path: Path, write_series: Callable[..., Path]) -> Path:
    """Two DICOM series and a NIfTI file with two volumes."""
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", seed=1)
    voxels = np.random.default_rng(2).integers(0, 900, (12, 10, 8, 2), np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "c.nii.gz")
    return tmp_path
