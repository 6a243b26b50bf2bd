"""Tissue beyond the grid is told, and air is not."""

from pathlib import Path

import numpy as np
import pytest

from decipher_rt.coverage import what_is_cut
from decipher_rt.manifest import Preprocessing
from decipher_rt.volume import SeriesInfo, Volume

SPEC = Preprocessing((32, 32, 32), (2.0, 2.0, 2.0), (8, 8, 8), (64,))  # sees 64 mm
SAID = "of the tissue lies beyond the 64 mm that the model sees from left to right"


@pytest.mark.parametrize(
    ("columns_mm", "tissue", "said"),
    [
        (2.0, slice(None), []),  # the grid covers all of it
        (3.0, slice(6, 26), []),  # air is cut
        (3.0, slice(None), [f"31% {SAID}"]),  # of 32 columns 20 are seen, and two in part
        (3.0, slice(0, 16), [f"31% {SAID}"]),
    ],
)
def test_tissue_beyond_the_grid_is_told(columns_mm, tissue, said):
    voxels = np.zeros((32, 32, 32), np.int16)
    voxels[:, :, tissue] = 1000
    affine = np.array([[0, 0, columns_mm, 0], [0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])
    volume = Volume(voxels, affine, SeriesInfo("1.2.3", Path()))
    assert what_is_cut(volume, np.array([0, 1000], np.float32), SPEC) == said
