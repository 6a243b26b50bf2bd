"""Real heads on the grid: the right way up whichever way the patient lay, and where the scanner says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import fft

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor
from decipher_rt.series import find_series, read_series
from decipher_rt.volume import Volume

COARSE = Preprocessing((64, 64, 64), (4.0, 4.0, 4.0), (16, 16, 16), (64,))
FINE = Preprocessing((128, 128, 128), (2.0, 2.0, 2.0), (16, 16, 16), (512,))
HEADS = ("philips_t1_mprage_sag", "siemens_t1_fl2d_sag_hfs", "siemens_t1_fl2d_sag_hfp")


def read(shared_data: Path, name: str) -> Volume:
    (series,) = find_series(shared_data / "dicom" / name)
    return read_series(series)


def normalised(grid: Grid) -> NDArray[np.float64]:
    low, high = grid.window.astype(np.float64)
    return np.clip((grid.volume - low) / (high - low), 0, 1)


def similarity(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest normalised cross-correlation over all shifts: the patient lay elsewhere, too."""
    shape = tuple(2 * size for size in first.shape)
    correlation = fft.irfftn(fft.rfftn(first, shape) * np.conj(fft.rfftn(second, shape)), shape)
    return float(correlation.max() / np.sqrt((first**2).sum() * (second**2).sum()))


def test_prone_and_supine_are_the_same_head(shared_data: Path) -> None:
    """Of the eight mirror images of the prone grid, the one as it is fits the supine grid best."""
    preprocess = Preprocessor(None, COARSE)
    supine, prone = (normalised(preprocess(read(shared_data, f"siemens_t1_fl2d_sag_{way}"))) for way in ("hfs", "hfp"))
    fits = {}
    for mirrored in product((False, True), repeat=3):
        axes = [axis for axis, flip in enumerate(mirrored) if flip]
        fits[mirrored] = similarity(supine, np.flip(prone, axes))
    assert max(fits, key=fits.__getitem__) == (False, False, False)
    # A head is nearly symmetric between right and left, so that this mirror image fits almost as well; no other does.
    best_other_way = max(fit for (superior, anterior, _), fit in fits.items() if superior or anterior)
    assert fits[False, False, False] - best_other_way > 0.05


@pytest.mark.parametrize("name", HEADS)
def test_head_is_up(name: str, shared_data: Path) -> None:
    """The first slice (the lowest) cuts the neck; the last ones are air above a scalp that closes to a point."""
    tissue = (normalised(Preprocessor(None, COARSE)(read(shared_data, name))) > 0.1).mean(axis=(1, 2))
    top = int(np.flatnonzero(tissue > 0.001)[-1])
    assert tissue[0] > 0.2
    assert top < 63
    assert tissue[top] < tissue[top - 1] < tissue[top - 2] < 0.5 * tissue[0]


@pytest.mark.parametrize("name", HEADS)
def test_tissue_lies_where_the_header_says(name: str, shared_data: Path) -> None:
    """Centre of mass in LPS mm, once from the series' own voxels and affine, once from the grid and its affine."""
    volume = read(shared_data, name)
    grid = Preprocessor(None, FINE)(volume)
    inverse = np.linalg.inv(grid.affine_lps_mm)

    def centre(values: NDArray[np.generic], affine: NDArray[np.float64]) -> NDArray[np.float64]:
        index = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1).reshape(-1, 3)
        points = index @ affine[:3, :3].T + affine[:3, 3]
        # A window that falls to 0 at the grid's faces, so that what reaches beyond them does not count.
        place = (points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5) / FINE.grid_shape
        taper = (np.sin(np.pi * np.clip(place, 0, 1)) ** 2).prod(axis=1)
        weights = np.clip(values.astype(np.float64).ravel() - grid.window[0], 0, None) * taper
        return (points * weights[:, None]).sum(axis=0) / weights.sum()  # type: ignore[no-any-return]

    # Every second row and column of the series is enough to weigh it, and a quarter of the memory.
    thinned = volume.affine_lps_mm @ np.diag([1.0, 2.0, 2.0, 1.0])
    in_series, in_grid = centre(volume.voxels[:, ::2, ::2], thinned), centre(grid.volume, grid.affine_lps_mm)
    # Sums over voxels of another size; a shift of half a voxel would be 0.5 mm and more.
    np.testing.assert_allclose(in_grid, in_series, rtol=0, atol=0.02)
