"""The picture shows the patient as radiologists look: right on the left, anterior and superior up, sizes true."""

import io
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decipher_rt.result import HeadAnswer, Result, ScopeAnswer, describe_series
from decipher_rt.volume import SeriesInfo, Volume
from decipher_rt.writers.views import draw_views, orthogonal_views

# A head-like block (L, P, S) in mm with one bright corner: right, anterior, superior of the middle.
SIZE_LPS = (24, 30, 40)
SPACING_LPS = (2.0, 1.0, 5.0)


def block(order=(2, 1, 0), flips=(False, False, False)) -> Volume:
    """Store the same patient in any axis order and direction; axes of ``order`` are L, P, S = 0, 1, 2."""
    lps = np.zeros(SIZE_LPS, np.int16)
    lps[:8, :10, -12:] = 100  # right = low L, anterior = low P, superior = high S
    lps[12, 15, 20] = 1  # not constant elsewhere
    affine = np.eye(4)
    stored = lps.transpose(order)
    for axis, (patient_axis, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, axis] = np.eye(3)[patient_axis] * SPACING_LPS[patient_axis] * (-1 if flip else 1)
        if flip:
            stored = np.flip(stored, axis)
            affine[:3, 3] += np.eye(3)[patient_axis] * SPACING_LPS[patient_axis] * (SIZE_LPS[patient_axis] - 1)
    return Volume(
        np.ascontiguousarray(stored), affine, SeriesInfo("1.2.3", Path("block"), description="Block", files=1)
    )


def brightest_corner(pixels: np.ndarray) -> tuple[bool, bool]:
    """Return whether the bright part lies in the upper and in the left half."""
    rows, columns = np.nonzero(pixels > 200)
    return bool(rows.mean() < pixels.shape[0] / 2), bool(columns.mean() < pixels.shape[1] / 2)


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_any_storage_shows_the_same_patient(order, flips):
    volume = block(order, flips)
    shown = orthogonal_views(Volume(np.ascontiguousarray(volume.voxels), volume.affine_lps_mm, volume.series))
    reference = orthogonal_views(block())
    for view, expected in zip(shown, reference, strict=True):
        assert view.size_mm == pytest.approx(expected.size_mm)
        np.testing.assert_array_equal(view.pixels, expected.pixels)


def test_each_edge_says_where_it_is():
    edges = [(view.left, view.right, view.top, view.bottom) for view in orthogonal_views(block())]
    assert edges == [("R", "L", "A", "P"), ("R", "L", "S", "I"), ("A", "P", "S", "I")]


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_right_is_left_and_anterior_and_superior_are_up(order, flips):
    axial, coronal, sagittal = (v.pixels for v in orthogonal_views(bright_everywhere(order, flips)))
    assert brightest_corner(axial) == (True, True)  # anterior up, right on the left
    assert brightest_corner(coronal) == (True, True)  # superior up, right on the left
    assert brightest_corner(sagittal) == (True, True)  # superior up, anterior on the left


def bright_everywhere(order, flips) -> Volume:
    """A gradient that grows towards right, anterior and superior, so every middle plane has its bright corner there."""
    volume = block(order, flips)
    index = np.indices(volume.voxels.shape).reshape(3, -1)
    lps = volume.affine_lps_mm[:3, :3] @ index + volume.affine_lps_mm[:3, 3:]
    extent = np.array(SIZE_LPS)[:, None] * np.array(SPACING_LPS)[:, None]
    towards = (lps / extent * np.array([[-1], [-1], [1]])).sum(0)
    voxels = (1000 + 1000 * towards).reshape(volume.voxels.shape).astype(np.int16)
    return Volume(voxels, volume.affine_lps_mm, volume.series)


def test_thick_slices_are_shown_at_their_true_size():
    axial, coronal, sagittal = orthogonal_views(block())
    assert axial.size_mm == (30.0, 48.0)  # P x L
    assert coronal.size_mm == (200.0, 48.0)  # S x L
    assert sagittal.size_mm == (200.0, 30.0)  # S x P


def result_for(volume: Volume, scope: ScopeAnswer, heads: dict[str, HeadAnswer]) -> Result:
    return Result(
        describe_series(volume),
        {"name": "toy", "version": "1", "sha256": "0" * 64},
        {"name": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 2},
        {"kept": 128, "total": 512},
        np.zeros(4, np.float32),
        scope,
        heads,
        {"read": 1.0, "total": 1.0},
    )


@pytest.mark.parametrize(
    "heads",
    [
        {"sequence": HeadAnswer("classification", label="T1w", probabilities={"T1w": 0.9, "T2w": 0.1})},
        {"brain_volume_ml": HeadAnswer("regression", value=1234.5, unit="ml")},
        {"sequence": HeadAnswer("classification", not_answered="out of scope")},
        {},
    ],
    ids=["classification", "regression", "withheld", "none"],
)
def test_every_kind_of_answer_makes_a_picture(heads):
    volume = block()
    png = draw_views(result_for(volume, ScopeAnswer(True, 0.9, "because " * 20), heads), volume)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_panels_hold_the_views_without_stretching_them():
    volume = bright_everywhere((2, 1, 0), (False,) * 3)
    with Image.open(io.BytesIO(draw_views(result_for(volume, ScopeAnswer(True, None, ""), {}), volume))) as picture:
        grey = np.asarray(picture.convert("L")).astype(int)
    coronal = grey[56:456, 16 + 416 : 16 + 416 + 400]
    columns = np.nonzero((coronal > 30).mean(axis=0) > 0.5)[0]
    # 200 x 48 mm at 2 pixels a mm: 96 columns.
    assert abs(columns[-1] - columns[0] + 1 - 96) <= 4
