"""Random classic series against highdicom's own reading of the same files."""

import tempfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decipher_rt.dicom.geometry import canonical_ras
from decipher_rt.series import find_series, read_series

SERIES = st.fixed_dictionaries(
    {
        "shape": st.tuples(st.integers(2, 6), st.integers(1, 9), st.integers(1, 9)),
        "dtype": st.sampled_from(["uint8", "int16", "uint16", "int8", "int32", "uint32"]),
        "spacing": st.tuples(*[st.floats(0.3, 12)] * 3),
        "seed": st.integers(0, 2**32 - 1),
        "mirrored": st.booleans(),
        "slope": st.sampled_from([None, 1.0, 0.37, 2.36166056166056, -1.5]),
        "intercept": st.sampled_from([0.0, -1024.0, 12.5]),
        "implicit": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SERIES)
def test_classic_series_equals_highdicom(write_series, synthetic, case):
    affine = synthetic.oblique_affine(case["spacing"], case["seed"])
    order = np.random.default_rng(case["seed"]).permutation(case["shape"][0])
    if case["mirrored"]:  # instance numbers that run against the normal
        affine[:3, 3] += (case["shape"][0] - 1) * affine[:3, 0]
        affine[:3, 0] *= -1
    rescale = {} if case["slope"] is None else {"RescaleSlope": case["slope"], "RescaleIntercept": case["intercept"]}
    syntax = "1.2.840.10008.1.2" if case["implicit"] else "1.2.840.10008.1.2.1"
    with tempfile.TemporaryDirectory() as folder:
        write_series(
            folder,
            case["shape"],
            affine,
            case["dtype"],
            order=order,
            seed=case["seed"],
            transfer_syntax=syntax,
            **rescale,
        )
        datasets = [pydicom.dcmread(path) for path in sorted(Path(folder).iterdir())]
        (series,) = find_series(Path(folder))
        ours = read_series(series)
    theirs = highdicom.get_volume_from_series(
        datasets, orientation_tol=1e-4, rtol=1e-2, apply_modality_transform=case["slope"] is not None, dtype=np.float64
    )
    # highdicom orders slices against the normal where it likes: both are compared in the closest RAS frame.
    expected_affine = theirs.get_affine(output_convention="LPH")
    ours_ras, theirs_ras = (
        canonical_ras(affine, array.shape)
        for affine, array in ((ours.affine_lps_mm, ours.voxels), (expected_affine, theirs.array))
    )
    np.testing.assert_allclose(ours_ras.affine_ras_mm, theirs_ras.affine_ras_mm, rtol=0, atol=1e-4)
    assert ours_ras.shape_ras == theirs_ras.shape_ras
    values = ours.voxels.astype(np.float64) * ours.slope + ours.intercept
    exact = ours.voxels.dtype.kind in "iu"
    np.testing.assert_allclose(
        turned(values, ours_ras),
        turned(theirs.array, theirs_ras),
        rtol=1e-12 if exact else 1e-6,
        atol=1e-9 if exact else 1e-3,
    )
    assert exact == (case["dtype"] not in ("int32", "uint32") and (case["slope"] or 1) > 0)
    if exact:
        levels, counts = np.unique(ours.voxels, return_counts=True)
        assert ours.histogram.first == levels[0]
        np.testing.assert_array_equal(np.flatnonzero(ours.histogram.counts) + levels[0], levels)
        np.testing.assert_array_equal(ours.histogram.counts[ours.histogram.counts > 0], counts)
    # Slices ascend along row x column.
    row, column = ours.affine_lps_mm[:3, 2], ours.affine_lps_mm[:3, 1]
    assert np.cross(row, column) @ ours.affine_lps_mm[:3, 0] > 0


def turned(array, frame):
    return array.transpose(frame.permutation)[tuple(slice(None, None, -1 if flip else 1) for flip in frame.flips)]
