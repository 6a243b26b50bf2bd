"""Stored bits, signs, rescaling and MONOCHROME1, against pydicom's pixel_array and apply_rescale."""

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_rescale

from decipher_rt.dicom.pixels import ValueCounter, count_values
from decipher_rt.errors import SeriesError
from decipher_rt.series import find_series, read_series


def read(path):
    return read_series(find_series(path)[0])


def stacked(folder, transform=lambda array, dataset: array):
    datasets = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    datasets.sort(key=lambda dataset: int(dataset.InstanceNumber))
    return np.stack([transform(dataset.pixel_array, dataset) for dataset in datasets])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("unused", [1, 3, 4])
@pytest.mark.parametrize("garbage", [False, True])
def test_unused_high_bits(tmp_path, write_series, dtype, unused, garbage):
    bits = np.dtype(dtype).itemsize * 8
    generator = np.random.default_rng(unused)
    voxels = generator.integers(0, 1 << bits, size=(4, 6, 8), dtype=np.uint64).astype(f"u{bits // 8}").view(dtype)
    if not garbage:
        voxels = voxels << unused >> unused
    folder = write_series(tmp_path / "s", voxels=voxels, BitsStored=bits - unused, HighBit=bits - unused - 1)
    volume = read(folder)
    expected = stacked(folder)
    np.testing.assert_array_equal(volume.voxels, expected.astype(volume.voxels.dtype))
    if volume.histogram is not None:
        levels, counts = np.unique(expected, return_counts=True)
        assert volume.histogram.first == levels[0]
        assert volume.histogram.first + len(volume.histogram.counts) - 1 == levels[-1]
        np.testing.assert_array_equal(volume.histogram.counts[volume.histogram.counts > 0], counts)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_one_slope_keeps_stored_integers(tmp_path, write_series, dtype):
    folder = write_series(tmp_path / "s", dtype=dtype, RescaleSlope="0.25", RescaleIntercept="-3")
    volume = read(folder)
    assert volume.voxels.dtype == dtype
    assert (volume.slope, volume.intercept) == (0.25, -3)
    np.testing.assert_allclose(
        volume.voxels * volume.slope + volume.intercept, stacked(folder, apply_rescale), rtol=1e-12
    )


@pytest.mark.parametrize("slopes", [("1", "2", "1.5", "1"), ("-1", "-1", "-1", "-1")])
def test_a_varying_or_negative_slope_is_applied(tmp_path, write_series, slopes):
    def edit(dataset, index):
        dataset.RescaleSlope = slopes[index]
        dataset.RescaleIntercept = str(index if slopes[0] == "1" else 4)

    folder = write_series(tmp_path / "s", (4, 5, 6), edit=edit)
    volume = read(folder)
    assert (volume.voxels.dtype, volume.slope, volume.intercept, volume.histogram) == (np.float32, 1.0, 0.0, None)
    np.testing.assert_allclose(volume.voxels, stacked(folder, apply_rescale), rtol=1e-6)
    exact = np.percentile(stacked(folder, apply_rescale), (2, 98), method="inverted_cdf")
    np.testing.assert_allclose(volume.percentiles((2, 98)), exact, rtol=1e-6)


def test_planes_that_are_inverted_within_other_bits_are_no_volume(tmp_path, write_series):
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit = (16, 15) if index == 2 else (12, 11)

    folder = write_series(tmp_path / "a", dtype="uint16", PhotometricInterpretation="MONOCHROME1", edit=edit)
    with pytest.raises(SeriesError, match="stores its pixels in another type"):
        read(folder)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32"])
@pytest.mark.parametrize("stored", [0, 3])
def test_monochrome1_is_turned_so_that_bright_is_high(tmp_path, write_series, synthetic, dtype, stored):
    bits = np.dtype(dtype).itemsize * 8
    voxels = synthetic.voxels((4, 5, 6), np.dtype(dtype)) << stored >> stored
    overrides = {"BitsStored": bits - stored, "HighBit": bits - stored - 1, "RescaleSlope": "2"}
    plain = read(write_series(tmp_path / "2", voxels=voxels, **overrides))
    turned = read(write_series(tmp_path / "1", voxels=voxels, PhotometricInterpretation="MONOCHROME1", **overrides))
    # The standard's only statement is the order: what was lowest is highest. Every stored value keeps its distance.
    assert any("MONOCHROME1" in warning for warning in turned.series.warnings)
    total = turned.voxels.astype(np.float64) * turned.slope + plain.voxels.astype(np.float64) * plain.slope
    np.testing.assert_allclose(total, total.flat[0], rtol=1e-6 if dtype == "int32" else 0)
    if turned.histogram is not None:
        levels, counts = np.unique(turned.voxels, return_counts=True)
        assert turned.histogram.first == levels[0]
        np.testing.assert_array_equal(turned.histogram.counts[turned.histogram.counts > 0], counts)
    lowest, highest = (0, (1 << (bits - stored)) - 1) if dtype[0] == "u" else (-(1 << (bits - stored - 1)), 0)
    assert turned.voxels.min() >= lowest * (2 if dtype == "int32" else 1)
    assert dtype[0] != "u" or turned.voxels.max() <= highest


def test_percentiles_are_those_of_all_voxels(tmp_path, write_series):
    volume = read(write_series(tmp_path / "s", (5, 30, 31), dtype="int16"))
    for q in ((0.5, 99.5), (0, 100), (33.3, 50)):
        expected = np.percentile(volume.voxels, q, method="inverted_cdf")
        np.testing.assert_array_equal(volume.percentiles(q), expected)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_counting_slices_of_any_range(dtype):
    generator = np.random.default_rng(3)
    info = np.iinfo(dtype)
    planes = [np.array([[info.min, info.max]], dtype)]
    for _ in range(30):
        low, high = sorted(generator.integers(info.min, info.max, size=2, endpoint=True))
        planes.append(generator.integers(low, high, size=(3, 7), dtype=dtype, endpoint=True))
    for start in (0, 1):
        counter = ValueCounter()
        for plane in planes[start:]:
            counter.add(*count_values(plane))
        values, counts = np.unique(np.concatenate([plane.ravel() for plane in planes[start:]]), return_counts=True)
        histogram = counter.histogram()
        assert histogram.first == values[0]
        assert len(histogram.counts) == int(values[-1]) - int(values[0]) + 1
        np.testing.assert_array_equal(histogram.counts[values.astype(int) - int(values[0])], counts)


def test_float_pixel_data(tmp_path, synthetic):
    planes = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    affine = synthetic.oblique_affine()
    for index, plane in enumerate(planes):
        dataset = synthetic.slice_dataset(plane.view(np.uint32), affine, index, "1.2.3", PixelRepresentation=None)
        dataset.FloatPixelData = plane.tobytes()
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit
        synthetic.save(dataset, tmp_path / f"{index}.dcm")
    np.testing.assert_array_equal(read(tmp_path).voxels, planes)
