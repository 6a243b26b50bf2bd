"""Slices in any order give what the whole volume gives; what is no slice of the series is refused by its position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
from decipher_rt.errors import SeriesError
from decipher_rt.preprocess import Preprocessor, SliceResampler, plan
from decipher_rt.preprocess.slices import after_in_plane
from decipher_rt.session import Session
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

# Resampling goes axis by axis; in the whole graph DALI chooses the order of the axes by cost, here the slices come last.
# Single precision then differs in the last bits of a value: relative to the window.
MAX_DIFFERENCE = 1e-5

INFO = SeriesInfo("1.2.3", Path())
SHAPES = ((24, 40, 36), (9, 120, 96), (70, 20, 30))


def random_volume(seed: int, dtype: Any) -> Volume:
    generator = np.random.default_rng(seed)
    shape = SHAPES[seed % len(SHAPES)]
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(generator.normal(size=(3, 3)))[0] * generator.uniform(1, 6, 3)
    affine[:3, 3] = generator.uniform(-100, 100, 3)
    return Volume(generator.integers(0, 250, shape).astype(dtype), affine, INFO)


@pytest.fixture(scope="module")
def session() -> Session:
    if not DEFAULT_BUNDLE.is_dir():
        pytest.skip("the default bundle is not there")
    return Session(open_bundle(), threads=2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_in_plane_then_the_rest_is_the_whole(session: Session, seed: int, dtype: Any) -> None:
    volume, spec = random_volume(seed, dtype), session.bundle.manifest.preprocessing
    preprocessor = Preprocessor(session.preprocessor.graph, spec)
    whole = preprocessor(volume)
    laid = plan(volume, spec)
    resample, planes = SliceResampler(preprocessor.graph), np.empty((len(volume.voxels), *laid.size[1:]), np.float32)
    for pixels, out in zip(volume.voxels, planes, strict=True):
        resample(pixels, laid, out)
    split = preprocessor.resample(planes, after_in_plane(laid))
    difference = np.abs(split.volume - whole.volume).max() / (whole.window[1] - whole.window[0])
    assert difference <= MAX_DIFFERENCE
    np.testing.assert_array_equal(split.window, whole.window)
    np.testing.assert_array_equal(split.affine_lps_mm, whole.affine_lps_mm)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_slices_in_any_order_answer_as_the_volume(session: Session, dtype: Any) -> None:
    volume = random_volume(3, dtype)
    expected = session.infer_volume(volume)
    stream = session.stream(volume.voxels.shape, dtype, volume.affine_lps_mm, INFO)  # type: ignore[arg-type]
    order = np.random.default_rng(0).permutation(len(volume.voxels))
    for count, index in enumerate(order):
        assert len(stream.missing()) == len(order) - count
        stream.push(volume.voxels[index], volume.affine_lps_mm[:3, 3] + index * volume.affine_lps_mm[:3, 0])
    result = stream.finish()
    np.testing.assert_allclose(result.embedding, expected.embedding, atol=1e-5)  # type: ignore[arg-type]
    assert result.tokens == expected.tokens
    assert {name: head.label for name, head in result.heads.items()} == {
        name: head.label for name, head in expected.heads.items()
    }
    assert result.series["affine_ras_mm"] == expected.series["affine_ras_mm"]
    assert stream.arrival_ms > 0
    assert result.timings_ms["read"] == 0


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_stream_gives_every_answer_and_warning_of_the_volume(answering_bundle: Path, dtype: Any) -> None:
    """The grid sees 128 mm of 160; the heads look at the voxels' own places."""
    session = Session(open_bundle(answering_bundle), threads=1)
    voxels = np.full((40, 32, 32), 400, dtype)
    voxels[12:20, 8:16, 8:16], voxels[:, 0] = 1000, 0  # one patch of 32 mm, and air
    affine = np.array([[0, 0, 4.0, -62], [0, 4, 0, -62], [4, 0, 0, -78], [0, 0, 0, 1]])
    series = SeriesInfo("1.2.3", Path(), acquisition=Acquisition(modality="MR"))
    expected = session.infer_volume(Volume(voxels, affine, series)).to_json()
    stream = session.stream(voxels.shape, dtype, affine, series)  # type: ignore[arg-type]
    for index in reversed(range(len(voxels))):
        stream.push(voxels[index], affine[:3, 3] + index * affine[:3, 0])
    found = stream.finish().to_json()
    assert found["heads"] == expected["heads"]
    assert found["heads"]["brightest"]["boxes"]
    assert found["heads"]["tissue"]["labels"][1]["volume_ml"] > 0
    assert found["series"]["warnings"] == expected["series"]["warnings"]
    assert "lies beyond the 128 mm that the model sees from feet to head" in found["series"]["warnings"][0]


def test_what_is_no_slice_of_the_series_is_refused(session: Session) -> None:
    affine = np.diag([5.0, 2.0, 2.0, 1.0])[:, [2, 1, 0, 3]]
    stream = session.stream((3, 16, 16), np.int16, affine, INFO)
    pixels = np.arange(256, dtype=np.int16).reshape(16, 16)
    step = affine[:3, 0]
    stream.push(pixels, step)
    for position, message in (
        (step, r"\(number 1\) has already come"),
        (3 * step, "outside the 3 slices"),
        (-step, "outside the 3 slices"),
        (0.5 * step, "none of the series' slices"),
        (step * np.nan, "none of the series' slices"),
        (2 * step + affine[:3, 1], "none of the series' slices"),
    ):
        with pytest.raises(SeriesError, match=message):
            stream.push(pixels, position)
    with pytest.raises(SeriesError, match=r"slice 0 is int32 \(16, 16\), expected int16"):
        stream.push(pixels.astype(np.int32), 0 * step)
    with pytest.raises(SeriesError, match=r"2 of 3 slices have not come, the first of them at \(0.00, 0.00, 0.00\) mm"):
        stream.finish()
    assert stream.missing() == (0, 2)
    for index in stream.missing():
        stream.push(pixels, index * step)
    assert stream.finish().embedding is not None


def test_values_that_are_not_finite_are_refused_and_may_come_again(session: Session) -> None:
    affine = np.diag([5.0, 2.0, 2.0, 1.0])[:, [2, 1, 0, 3]]
    stream = session.stream((2, 16, 16), np.float32, affine, INFO)
    pixels = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    spoilt = pixels.copy()
    spoilt[3, 3] = np.nan
    with pytest.raises(SeriesError, match="slice 0 holds values that are not finite"):
        stream.push(spoilt, np.zeros(3))
    for index in stream.missing():
        stream.push(pixels, index * affine[:3, 0])
    stream.finish()


def test_bad_geometry_is_refused(session: Session) -> None:
    with pytest.raises(SeriesError, match="expected slices, rows and columns"):
        session.stream((3, 0, 4), np.int16, np.eye(4), INFO)
    with pytest.raises(SeriesError, match="type <i4"):
        session.stream((3, 4, 4), np.int32, np.eye(4), INFO)
    for scale in (1e-9, 1e-30, 1e6):  # DALI divides by zero on the smallest of them
        with pytest.raises(SeriesError, match=r"expected 0\.001 to 1000 mm along each axis"):
            session.stream((3, 4, 4), np.int16, np.diag([scale, 1.0, 1.0, 1.0]), INFO)
    other_order = np.dtype(np.int16).newbyteorder()
    for shape, dtype, affine, rescale, message in (
        ((-1, 4, 4), np.int16, np.eye(4), {}, "expected slices, rows and columns"),
        ((3, 4, 4.5), np.int16, np.eye(4), {}, "'float' object"),
        ((1 << 40, 1 << 15, 1 << 15), np.int16, np.eye(4), {}, "does not fit into memory"),
        ((3, 4, 4), "nonsense", np.eye(4), {}, "type nonsense: data type 'nonsense' not understood"),
        ((3, 4, 4), other_order, np.eye(4), {}, "in this machine's byte order"),
        ((3, 4, 4), np.int16, np.eye(3), {}, r"the affine has the shape \(3, 3\), expected \(4, 4\)"),
        ((3, 4, 4), np.int16, "abc", {}, "the affine is no array of numbers"),
        ((3, 4, 4), np.int16, np.eye(4), {"slope": -1.0}, "slope -1 and intercept 0: expected finite ones"),
        ((3, 4, 4), np.int16, np.eye(4), {"intercept": np.nan}, "slope 1 and intercept nan"),
    ):
        with pytest.raises(SeriesError, match=message):
            session.stream(shape, dtype, affine, INFO, **rescale)
    stream = session.stream((3, 4, 4), np.int16, np.eye(4)[[2, 1, 0, 3]], INFO)
    with pytest.raises(SeriesError, match=r"the slice's position has the shape \(2,\), expected \(3,\)"):
        stream.push(np.zeros((4, 4), np.int16), np.zeros(2))
    with pytest.raises(SeriesError, match="lie in one plane"):
        session.stream((3, 4, 4), np.int16, np.vstack([np.ones((3, 4)), [0, 0, 0, 1]]), INFO)
