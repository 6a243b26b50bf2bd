"""Axis order and canonical frames against nibabel and against the definition."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decipher_rt.dicom.geometry import axis_order, canonical_ras
from decipher_rt.errors import SeriesError

LPS_OF_LETTER = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
ALL_48 = [
    tuple(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]


def affine_of(letters, spacing=(1.0, 2.0, 3.0)):
    affine = np.eye(4)
    for axis, letter in enumerate(letters):
        affine[:3, axis] = np.multiply(LPS_OF_LETTER[letter], spacing[axis])
    return affine


def random_rotation(seed):
    matrix, triangular = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.diag(triangular))


@pytest.mark.parametrize("letters", ALL_48, ids="".join)
def test_each_of_the_48_axis_orders(letters):
    shape = (2, 3, 4)
    voxels = np.arange(24).reshape(shape)
    affine = affine_of(letters)
    order = axis_order(affine)
    reached = "".join(
        {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}[letters[axis]] if flip else letters[axis]
        for axis, flip in zip(order.permutation, order.flips, strict=True)
    )
    assert reached == "SAR"
    # The voxel furthest to the Superior, Anterior and Right is the last of the reoriented array.
    index = np.array(list(np.ndindex(*shape)))
    sar = (index @ affine[:3, :3].T) @ np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]).T
    corner = voxels.ravel()[np.argmax(sar.sum(axis=1))]
    assert order.apply(voxels)[-1, -1, -1] == corner


@given(st.integers(0, 2**32 - 1), st.sampled_from(ALL_48))
def test_storage_order_does_not_change_the_patient_axes(seed, letters):
    turn = random_rotation(seed)
    axes = {}
    for stored in (("S", "A", "R"), letters):
        affine = affine_of(stored, (1, 1, 1))
        affine[:3, :3] = turn @ affine[:3, :3]
        order = axis_order(affine)
        signs = np.where(order.flips, -1, 1)
        axes[stored] = affine[:3, order.permutation] * signs
    first, second = axes.values() if len(axes) == 2 else [*axes.values()] * 2
    np.testing.assert_allclose(first, second, atol=1e-12)
    # Never more than a permutation away from the best: each axis has a positive component along its target.
    assert (np.diag(np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]]) @ first) > 0).all()


@pytest.mark.parametrize("letters", ALL_48, ids="".join)
@pytest.mark.parametrize("about", [0, 1, 2])
def test_a_tie_at_45_degrees_is_broken_in_the_patient(letters, about):
    c = np.sqrt(0.5)
    turn = np.eye(3)
    first, second = (axis for axis in range(3) if axis != about)
    turn[[first, first, second, second], [first, second, first, second]] = c, -c, c, c
    frames = []
    for stored in (("S", "A", "R"), letters):
        affine = affine_of(stored, (1, 1, 1))
        affine[:3, :3] = turn @ affine[:3, :3]
        order = axis_order(affine)
        frames.append(affine[:3, order.permutation] * np.where(order.flips, -1, 1))
    np.testing.assert_allclose(frames[0], frames[1], atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.3, 9)] * 3), st.sampled_from(ALL_48))
def test_canonical_ras_equals_nibabel(seed, spacing, letters):
    turn = random_rotation(seed)
    affine = affine_of(letters, spacing)
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = np.random.default_rng(seed).uniform(-200, 200, 3)
    cosines = np.abs(turn)
    if len(set(cosines.argmax(axis=0))) < 3 or len(set(cosines.argmax(axis=1))) < 3:
        return  # nibabel assigns greedily and so by storage order there; the tests above hold
    shape = (2, 3, 4)
    ours = canonical_ras(affine, shape)
    voxels = np.arange(24, dtype=np.int16).reshape(shape)
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 1, 1]) @ affine))
    np.testing.assert_allclose(ours.affine_ras_mm, theirs.affine, atol=1e-9)
    assert ours.shape_ras == theirs.shape
    moved = voxels.transpose(ours.permutation)[tuple(slice(None, None, -1 if f else 1) for f in ours.flips)]
    np.testing.assert_array_equal(moved, np.asarray(theirs.dataobj))


@pytest.mark.parametrize(
    "affine",
    [np.zeros((4, 4)), np.full((4, 4), np.nan), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])],
)
def test_axes_that_do_not_span_space_are_refused(affine):
    with pytest.raises(SeriesError, match="orientation cannot be told"):
        axis_order(affine)
