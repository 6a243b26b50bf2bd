"""What cannot be one volume beyond doubt: each kind its own one-line error that names file or position."""

import re

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from decipher_rt.errors import SeriesError
from decipher_rt.series import ReadOptions, find_series, read_series

DELETE = object()


def one(**changes):
    """Change slice 2 only."""

    def edit(dataset, index):
        if index == 2:
            for keyword, value in changes.items():
                if value is DELETE:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)

    return {"edit": edit}


def smaller(dataset, index):
    if index == 2:
        dataset.Rows = 5
        dataset.PixelData = bytes(5 * 12 * 2)


def eight_bit(dataset, index):
    if index == 2:
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        dataset.PixelData = bytes(120)


def turned(dataset, index):
    if index == 2:
        row, column = np.array(dataset.ImageOrientationPatient, dtype=float).reshape(2, 3)
        angle = 0.003 / np.abs([row, column]).max()
        turned_axes = [row * np.cos(angle) + column * np.sin(angle), column * np.cos(angle) - row * np.sin(angle)]
        dataset.ImageOrientationPatient = [f"{value:.12f}" for value in np.ravel(turned_axes)]


BROKEN = {
    "missing slice": (
        {"edit": lambda _, index: index != 2},
        r"^1 slice is missing, the first at \(.*\) mm LPS \(--allow-gaps",
    ),
    "spacing": (one(ImagePositionPatient=[0.0, 0.0, 0.0]), "spacing varies|tilted|missing"),
    "orientation": ({"edit": turned}, r"^the orientation varies between slices: direction cosines differ by 0\.003"),
    "size": ({"edit": smaller}, r"^0002\.dcm: the slice at \(.*\) mm LPS has 5 x 12 pixels, others .* have 10 x 12"),
    "type": ({"edit": eight_bit}, r"^0002\.dcm: the slice at .* stores its pixels in another type"),
    "sign": (one(PixelRepresentation=1), "another type"),
    "pixel spacing": (one(PixelSpacing=[1, 1.5]), r"^the pixel spacing varies"),
    "no position": (one(ImagePositionPatient=DELETE), r"^0002\.dcm: does not say where .* Image Position"),
    "no orientation": (one(ImageOrientationPatient=DELETE), r"^0002\.dcm: .* no usable Image Orientation"),
    "no pixel spacing": (one(PixelSpacing=DELETE), r"^0002\.dcm: .* no usable Pixel Spacing"),
    "position of two": (one(ImagePositionPatient=[1, 2]), r"^0002\.dcm: .* Image Position"),
    "absurd position": (one(ImagePositionPatient=[1, 2, "1e300"]), r"^0002\.dcm: .* Image Position"),
    "zero spacing": (one(PixelSpacing=[0, 1]), r"^0002\.dcm: has the pixel spacing 0 x 1"),
    "no plane": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "spans no plane"),
    "not orthogonal": ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.8660254, 0]}, "perpendicular|tilted"),
    "not MR": ({"Modality": "CT"}, r"^0000\.dcm: modality is CT, not MR \(--any-modality"),
    "no modality": ({"Modality": None}, r"modality is not given, not MR"),
    "no pixels": (one(PixelData=DELETE), r"^0002\.dcm: holds no pixel data"),
    "short pixels": (one(PixelData=bytes(200)), r"^0002\.dcm: is cut off: its pixel data has 200 of 240 bytes"),
    "long pixels": (one(PixelData=bytes(480)), r"^0002\.dcm: has 480 bytes of pixel data where .* 240"),
    "colour": (one(SamplesPerPixel=3, PhotometricInterpretation="RGB"), r"^0002\.dcm: is not a greyscale image"),
    "palette": (one(PhotometricInterpretation="PALETTE COLOR"), r"^0002\.dcm: is not a greyscale image \(PALETTE"),
    "bits": (one(BitsAllocated=12), r"^0002\.dcm: has 12 bits a pixel"),
    "more stored than allocated": (one(BitsStored=17), r"^0002\.dcm: has 16 bits a pixel, 17"),
    "high bit": (one(BitsStored=12, HighBit=15), r"^0002\.dcm: .* high bit 15"),
    "no rows": (one(Rows=DELETE), r"^0002\.dcm: does not describe its pixels: \(0028,0010\) is absent"),
    "zero rows": (one(Rows=0), r"^0002\.dcm: has 0 rows"),
    "zero slope": (one(RescaleSlope="0"), r"^0002\.dcm: has the rescale slope 0"),
    "frames": (one(NumberOfFrames=2), r"^0002\.dcm: "),
    "words for numbers": (one(RescaleSlope="2.0"), None),  # a slope that varies is no error
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_series(tmp_path, write_series, name):
    options, message = BROKEN[name]
    folder = write_series(tmp_path / "s", **options)
    series = find_series(folder)
    assert len(series) == 1
    if message is None:
        assert read_series(series[0]).voxels.shape == (6, 10, 12)
        return
    with pytest.raises(SeriesError) as error:
        read_series(series[0])
    assert re.search(message, str(error.value)), str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not re.search("Doe|SECRET", str(error.value))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("missing slice", {"allow_gaps": True}),
        ("not MR", {"any_modality": True}),
        ("no modality", {"any_modality": True}),
    ],
)
def test_the_option_that_the_error_names_goes_on(tmp_path, write_series, synthetic, name, option):
    folder = write_series(tmp_path / "s", **BROKEN[name][0])
    volume = read_series(find_series(folder)[0], ReadOptions(**option))
    expected = synthetic.voxels((6, 10, 12))
    present = [0, 1, 3, 4, 5] if "allow_gaps" in option else list(range(6))
    np.testing.assert_array_equal(volume.voxels[present], expected[present])
    if "allow_gaps" in option:
        assert (volume.voxels[2] == expected[present].min()).all()
        _, counts = np.unique(volume.voxels, return_counts=True)
        np.testing.assert_array_equal(volume.histogram.counts[volume.histogram.counts > 0], counts)
        assert any("missing and left empty" in warning for warning in volume.series.warnings)


def test_missing_slice_is_named_where_it_is(tmp_path, write_series, synthetic):
    affine = synthetic.oblique_affine()
    folder = write_series(tmp_path / "s", affine=affine, edit=lambda _, index: index != 4)
    x, y, z = affine[:3, 3] + 4 * affine[:3, 0]
    with pytest.raises(SeriesError, match=re.escape(f"({x:.2f}, {y:.2f}, {z:.2f}) mm LPS")):
        read_series(find_series(folder)[0])


@pytest.mark.parametrize("length", [0, 50, 140, 300, 700, 1000])
def test_a_file_that_is_cut_off(tmp_path, write_series, length):
    folder = write_series(tmp_path / "s")
    path = folder / "0003.dcm"
    path.write_bytes(path.read_bytes()[:length])
    errors = []
    for series in find_series(folder):
        try:
            read_series(series)
        except SeriesError as error:
            errors.append(str(error))
    assert any("0003.dcm" in error or "1 slice is missing" in error for error in errors)


def test_pixels_that_are_cut_off_after_the_header_was_read(tmp_path, write_series):
    folder = write_series(tmp_path / "s")
    (series,) = find_series(folder)
    path = folder / "0003.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SeriesError, match=r"0003\.dcm: is cut off: its pixel data has 140 of 240 bytes"):
        read_series(series)
    path.unlink()
    with pytest.raises(SeriesError, match=r"0003\.dcm: No such file"):
        read_series(series)


def test_a_damaged_file_beside_a_series_is_its_own_entry_and_a_warning(tmp_path, write_series):
    folder = write_series(tmp_path / "s")
    (folder / "zz.dcm").write_bytes((folder / "0003.dcm").read_bytes()[:400])
    good, bad = find_series(folder)
    volume = read_series(good)
    assert any("could not be read" in warning and "zz.dcm" in warning for warning in volume.series.warnings)
    with pytest.raises(SeriesError, match=r"zz\.dcm"):
        read_series(bad)


def test_one_broken_series_does_not_hide_the_other(tmp_path, write_series):
    write_series(tmp_path / "all" / "a", Modality="CT")
    write_series(tmp_path / "all" / "b")
    write_series(tmp_path / "all" / "c", **BROKEN["no pixels"][0])
    first, second, third = find_series(tmp_path / "all")
    assert read_series(second).voxels.shape == (6, 10, 12)
    for broken in (first, third):
        with pytest.raises(SeriesError):
            read_series(broken)


def test_no_series_uid(tmp_path, write_series):
    folder = write_series(tmp_path / "s", (1, 4, 4))
    path = folder / "0000.dcm"
    dataset = pydicom.dcmread(path)
    del dataset.SeriesInstanceUID
    dataset.save_as(path)
    (series,) = find_series(folder)
    with pytest.raises(SeriesError, match=r"0000\.dcm: has no Series Instance UID"):
        read_series(series)


def test_a_foreign_sop_class_with_the_series_uid_of_images_is_left_out(tmp_path, write_series, synthetic):
    uid = generate_uid()
    folder = write_series(tmp_path / "s", series_uid=uid)
    dataset = synthetic.slice_dataset(np.zeros((2, 2), np.uint16), synthetic.oblique_affine(), 0, uid, PixelData=None)
    dataset.SOPClassUID = pydicom.uid.GrayscaleSoftcopyPresentationStateStorage
    synthetic.save(dataset, folder / "state.dcm")
    volume = read_series(find_series(folder)[0])
    assert volume.series.files == 6
    assert any("without an image" in warning for warning in volume.series.warnings)
