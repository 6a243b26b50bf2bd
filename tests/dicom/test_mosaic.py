"""Siemens mosaics: synthetic ones against the classic series of the same volume, and hostile CSA headers."""

import struct

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decipher_rt.dicom.image import NotAnImageError
from decipher_rt.dicom.mosaic import _csa_values
from decipher_rt.errors import SeriesError
from decipher_rt.series import find_series, read_series


def csa_header(entries):
    """Write the layout SV10: a count, then name, multiplicity, representation and items of each entry."""
    out = b"SV10\4\3\2\1" + struct.pack("<II", len(entries), 77)
    for name, values in entries:
        items = [f"{value:.8f}".encode() + b"\0" for value in values]
        items += [b""] * (6 - len(items))
        out += struct.pack("<64si4siii", name.encode(), len(values), b"FD\0\0", 4, len(items), 77)
        for item in items:
            out += struct.pack("<4i", len(item), len(item), 77, len(item)) + item + b"\0" * (-len(item) % 4)
    return out


@pytest.fixture
def write_mosaic(tmp_path, synthetic):
    def write(voxels, affine, csa=..., images=None, reverse=False, name="mosaic.dcm", **overrides):
        slices, height, width = voxels.shape
        tiles = int(np.ceil(np.sqrt(slices)))
        image = np.zeros((tiles * height, tiles * width), voxels.dtype)
        for number, plane in enumerate(voxels):
            row, column = divmod(number, tiles)
            image[row * height : (row + 1) * height, column * width : (column + 1) * width] = plane
        # Siemens gives the corner of an image of this size around the first slice's centre.
        corner = affine.copy()
        corner[:3, 3] -= affine[:3, 1] * (tiles - 1) * height / 2 + affine[:3, 2] * (tiles - 1) * width / 2
        dataset = synthetic.slice_dataset(image, corner, 0, "1.2.3", **overrides)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        normal = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
        if csa is ...:
            csa = csa_header(
                [("EchoLinePosition", [36.0]), ("NumberOfImagesInMosaic", [slices]), ("SliceNormalVector", normal)]
            )
        if csa is not None:
            dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(
                0x10, "OB", csa + b"\0" * (len(csa) % 2)
            )
        if images is not None:
            dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", images)
        return synthetic.save(dataset, tmp_path / name)

    return write


@pytest.mark.parametrize("slices", [1, 2, 4, 5, 9, 11])
@pytest.mark.parametrize("descending", [False, True])
def test_a_mosaic_is_the_classic_series_of_the_same_volume(
    tmp_path, write_series, write_mosaic, synthetic, slices, descending
):
    voxels = synthetic.voxels((slices, 6, 8))
    affine = synthetic.oblique_affine((4.0, 2.0, 2.5), seed=slices)
    if descending:  # slices run against row x column
        affine[:3, 0] *= -1
    classic = read_series(find_series(write_series(tmp_path / "classic", affine=affine, voxels=voxels))[0])
    mosaic = read_series(find_series(write_mosaic(voxels, affine))[0])
    np.testing.assert_array_equal(mosaic.voxels, classic.voxels)
    np.testing.assert_allclose(mosaic.affine_lps_mm, classic.affine_lps_mm, atol=1e-6)
    np.testing.assert_array_equal(mosaic.histogram.counts, classic.histogram.counts)


def test_the_number_of_images_from_either_place(write_mosaic, synthetic):
    voxels, affine = synthetic.voxels((5, 6, 8)), synthetic.oblique_affine()
    normal = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    path = write_mosaic(voxels, affine, csa_header([("SliceNormalVector", normal)]), images=5)
    np.testing.assert_array_equal(read_series(find_series(path)[0]).voxels, voxels)
    with pytest.raises(SeriesError, match="mosaic of 5 or 4 slices"):
        read_series(find_series(write_mosaic(voxels, affine, images=4))[0])


NORMAL = [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("csa", "message"),
    [
        (None, "does not say how many slices"),
        (b"", "does not say how many slices"),
        (csa_header([("NumberOfImagesInMosaic", [5])]), r"without the slice direction"),
        (
            csa_header([("NumberOfImagesInMosaic", [5]), ("SliceNormalVector", [1, 0, 0])]),
            "not the normal of the image",
        ),
        (csa_header([("NumberOfImagesInMosaic", [5]), ("SliceNormalVector", [float("nan")] * 3)]), "slice direction"),
        (csa_header([("NumberOfImagesInMosaic", [0]), ("SliceNormalVector", NORMAL)]), "mosaic of 0 slices"),
        (csa_header([("NumberOfImagesInMosaic", [50]), ("SliceNormalVector", NORMAL)]), "do not divide into 8 x 8"),
        (csa_header([("NumberOfImagesInMosaic", [1e9]), ("SliceNormalVector", NORMAL)]), "mosaic of 1000000000 slices"),
        (b"\5\0\0\0" + b"\0" * 80, "not of the layout SV10"),
        (b"SV10\4\3\2\1\xff\xff\xff\xff", "damaged CSA header"),
        (b"SV10\4\3\2\1\x02\0\0\0M\0\0\0" + b"x" * 64 + b"\xff" * 40, "damaged CSA header"),
    ],
)
def test_csa_headers_that_say_too_little_or_lie(write_mosaic, synthetic, csa, message):
    affine = synthetic.oblique_affine((4, 2, 2), None)
    with pytest.raises(SeriesError, match=message) as error:
        read_series(find_series(write_mosaic(synthetic.voxels((5, 6, 8)), affine, csa))[0])
    assert str(error.value).startswith("mosaic.dcm: ")


def test_a_mosaic_without_spacing(write_mosaic, synthetic):
    path = write_mosaic(
        synthetic.voxels((5, 6, 8)), synthetic.oblique_affine(), SpacingBetweenSlices=None, SliceThickness=3
    )
    with pytest.raises(SeriesError, match="without Spacing Between Slices"):
        read_series(find_series(path)[0])


def test_the_spacing_of_the_csa_header_serves_where_there_is_no_other(write_mosaic, synthetic):
    affine = synthetic.oblique_affine((3.75, 2, 2), None)
    csa = csa_header([("NumberOfImagesInMosaic", [5]), ("SliceNormalVector", NORMAL), ("SpacingBetweenSlices", [3.75])])
    path = write_mosaic(synthetic.voxels((5, 6, 8)), affine, csa, SpacingBetweenSlices=None, SliceThickness=3)
    np.testing.assert_allclose(read_series(find_series(path)[0]).affine_lps_mm[:3, 0], [0, 0, 3.75], atol=1e-6)


GOOD = csa_header([("A", [1, 2]), ("NumberOfImagesInMosaic", [5]), ("SliceNormalVector", NORMAL), ("B", [])])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD) - 1), st.binary(max_size=8))
def test_any_csa_header_is_read_or_refused(cut, place, garbage):
    header = bytearray(GOOD)
    header[place : place + len(garbage)] = garbage
    for hostile in (bytes(header), bytes(header[:cut])):
        try:
            found = _csa_values(hostile, ("NumberOfImagesInMosaic", "SliceNormalVector"))
        except NotAnImageError:
            continue
        assert set(found) <= {"NumberOfImagesInMosaic", "SliceNormalVector"}


@pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental")
def test_csa_values_equal_nibabel_on_a_real_header(shared_data):
    from nibabel.nicom.csareader import get_csa_header, get_n_mosaic, get_slice_normal

    path = sorted((shared_data / "dicom" / "siemens_epi_fmri").iterdir())[0]
    dataset = pydicom.dcmread(path)
    theirs = get_csa_header(dataset, "image")
    ours = _csa_values(dataset[0x0029, 0x1010].value, ("NumberOfImagesInMosaic", "SliceNormalVector"))
    assert ours["NumberOfImagesInMosaic"] == [get_n_mosaic(theirs)]
    np.testing.assert_allclose(ours["SliceNormalVector"], get_slice_normal(theirs))


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian])
def test_a_grid_of_united_imaging_is_refused_and_not_read_as_one_slice(tmp_path, synthetic, syntax):
    def grid(slices):
        plane, affine = synthetic.voxels((1, 12, 16))[0], synthetic.oblique_affine((4.0, 2.0, 2.5))
        dataset = synthetic.slice_dataset(plane, affine, 0, "1.2.3", Manufacturer="UIH")
        dataset.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, "DS", str(slices))
        return synthetic.save(dataset, tmp_path / "grid.dcm", syntax)

    with pytest.raises(SeriesError, match="is a grid of 4 slices"):
        read_series(find_series(grid(4))[0])
    assert read_series(find_series(grid(1))[0]).voxels.shape == (1, 12, 16)
