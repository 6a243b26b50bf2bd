"""Order, spacing and affine of a stack, with every tolerance on both of its sides."""

import numpy as np
import pytest

from decipher_rt.dicom import stack as module
from decipher_rt.dicom.stack import stack_normal, stack_slices
from decipher_rt.errors import SeriesError

ROW, COLUMN, NORMAL = np.eye(3)


def stacked(locations, orientation=(1, 0, 0, 0, 1, 0), spacing=(0.5, 2.0), offsets=None, **options):
    count = len(locations)
    positions = np.outer(locations, NORMAL) + (np.zeros((count, 3)) if offsets is None else np.asarray(offsets))
    orientations = np.array(orientation, dtype=float)
    if orientations.ndim == 1:
        orientations = np.tile(orientations, (count, 1))
    spacings = np.array(spacing, dtype=float)
    if spacings.ndim == 1:
        spacings = np.tile(spacings, (count, 1))
    return stack_slices(positions, orientations, spacings, **options)


def test_order_and_affine():
    stack = stacked([6, 0, 3, 9])
    assert stack.order.tolist() == [1, 2, 0, 3]
    # Columns: from slice to slice, from row to row (spacing between rows first), from column to column.
    expected = np.array([[0, 0, 2, 0], [0, 0.5, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(stack.affine_lps_mm, expected)
    assert stack.warnings == ()


def test_one_slice_takes_the_stated_spacing_and_never_guesses():
    assert stacked([5], stated_spacing=4.5).affine_lps_mm[2, 0] == 4.5
    for stated in (None, 0.0, -1.0, np.nan):
        with pytest.raises(SeriesError, match=r"one slice only, at \(0\.00, 0\.00, 5\.00\) mm LPS"):
            stacked([5], stated_spacing=stated)


@pytest.mark.parametrize(
    ("locations", "count", "first"), [([0, 3, 9, 12], "1 slice is", 6), ([0, 3, 6, 18, 21], "3 slices are", 9)]
)
def test_missing_slices(locations, count, first):
    with pytest.raises(
        SeriesError, match=rf"{count} missing, the first at \(0\.00, 0\.00, {first}\.00\) mm LPS \(--allow-gaps"
    ):
        stacked(locations)
    stack = stacked(locations, allow_gaps=True)
    assert len(stack.order) == locations[-1] / 3 + 1
    assert [index * 3 for index, source in enumerate(stack.order) if source >= 0] == locations
    assert stack.affine_lps_mm[2, 0] == 3
    assert count in stack.warnings[0]


def test_every_other_slice_missing_shows_against_the_header():
    with pytest.raises(SeriesError, match="2 times the 3 mm of the header"):
        stacked([0, 6, 12], stated_spacing=3.0)
    assert "6 mm apart" in stacked([0, 6, 12], stated_spacing=3.0, allow_gaps=True).warnings[0]
    assert "6 mm apart, the header says 5 mm" in stacked([0, 6, 12], stated_spacing=5.0).warnings[0]
    assert stacked([0, 6, 12], stated_spacing=6.05).warnings == ()


def test_a_gap_that_asks_for_endless_slices_is_refused():
    with pytest.raises(SeriesError, match="too many to fill in"):
        stacked([0, 1, 2, 90000], allow_gaps=True)


@pytest.mark.parametrize("allow_gaps", [False, True])
def test_irregular_spacing_is_not_a_gap(allow_gaps):
    with pytest.raises(SeriesError, match=r"the slice spacing varies: 4\.8 mm after"):
        stacked([0, 3, 6, 10.8, 13.8], allow_gaps=allow_gaps)


def test_slices_beside_their_place():
    limit = module.SLICE_POSITION_TOLERANCE * 3
    assert len(stacked([0, 3, 6 + 0.9 * limit, 9, 12]).order) == 5
    with pytest.raises(SeriesError, match=r"varies beyond 3%: the slice at \(0\.00, 0\.00, 6\.10\) mm LPS"):
        stacked([0, 3, 6 + 1.1 * limit, 9, 12])
    with pytest.raises(SeriesError, match="varies beyond 3%"):
        stacked([0, 3, 6, 9, 12], offsets=[[0, 0, 0], [0, 0, 0], [1.1 * limit, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_tilted_stack():
    for share, refused in ((0.9, False), (1.1, True)):
        offsets = np.outer(np.arange(5) * 3 * share * module.TILT_TOLERANCE, ROW)
        if refused:
            with pytest.raises(SeriesError, match=r"tilted or staggered"):
                stacked([0, 3, 6, 9, 12], offsets=offsets)
        else:
            affine = stacked([0, 3, 6, 9, 12], offsets=offsets).affine_lps_mm
            np.testing.assert_allclose(affine[:3, 0], [3 * share * module.TILT_TOLERANCE, 0, 3])


def test_orientation_that_varies():
    orientations = np.tile([1.0, 0, 0, 0, 1, 0], (4, 1))
    orientations[2, 1] = 0.9 * module.ORIENTATION_TOLERANCE
    assert len(stacked([0, 3, 6, 9], orientations).order) == 4
    orientations[2, 1] = 1.1 * module.ORIENTATION_TOLERANCE
    with pytest.raises(SeriesError, match="the orientation varies between slices"):
        stacked([0, 3, 6, 9], orientations)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0.01, 1, 0), (1.01, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0.9, 0)])
def test_orientation_that_is_none(orientation):
    with pytest.raises(SeriesError, match="not a pair of perpendicular unit vectors"):
        stacked([0, 3, 6], orientation)


def test_parallel_row_and_column_span_no_plane():
    with pytest.raises(SeriesError, match="spans no plane"):
        stack_normal(np.array([1.0, 0, 0, 1, 0, 0]))


def test_pixel_spacing_that_varies():
    spacings = np.tile([0.5, 2.0], (3, 1))
    spacings[1, 1] *= 1 + 0.9 * module.PIXEL_SPACING_TOLERANCE
    assert len(stacked([0, 3, 6], spacing=spacings).order) == 3
    spacings[1, 1] = 2.1
    with pytest.raises(
        SeriesError, match=r"the pixel spacing varies: 0\.5 x 2\.1 mm at \(0\.00, 0\.00, 3\.00\) mm LPS"
    ):
        stacked([0, 3, 6], spacing=spacings)


def test_images_at_one_place_are_no_stack():
    with pytest.raises(SeriesError, match="several images at"):
        stacked([0, 0, 0, 3])


def test_volumes_that_moved_are_not_a_stack_with_gaps():
    moved = [z + drift for drift in (0, 0.05, 0.1) for z in (0, 3, 6, 9)]
    for allow_gaps in (False, True):
        with pytest.raises(SeriesError, match=r"0\.05 mm apart where the header says 3 mm.* moved against one another"):
            stacked(moved, stated_spacing=3, allow_gaps=allow_gaps)


@pytest.mark.parametrize(("thickness", "good"), [(5, True), (None, False), (1, False), (4, False)])
def test_a_gap_that_is_stated_as_the_spacing_is_no_missing_slice(thickness, good):
    if good:
        assert (
            "6 mm apart, the header says 1 mm" in stacked([0, 6, 12], stated_spacing=1, thickness=thickness).warnings[0]
        )
        return
    with pytest.raises(SeriesError, match="6 times the 1 mm"):
        stacked([0, 6, 12], stated_spacing=1, thickness=thickness)


def test_every_other_slice_of_a_contiguous_stack_is_missed():
    with pytest.raises(SeriesError, match="2 times the 3 mm"):
        stacked([0, 6, 12], stated_spacing=3, thickness=3)
