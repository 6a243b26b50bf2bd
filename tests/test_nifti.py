"""NIfTI against nibabel: data, affine, scaling, volumes, damage."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from decipher_rt.errors import SeriesError
from decipher_rt.series import ReadOptions, find_series, read_series

SHAPE = (5, 4, 3)


def oblique(seed):
    matrix, triangular = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = matrix * np.sign(np.diag(triangular)) * [1.5, 2.0, 2.5]
    affine[:3, 3] = [-10, 20, 30]
    return affine


def save(path, array, affine, sform=1, qform=1, kind=nibabel.Nifti1Image, **header):
    image = kind(array, affine)
    image.set_sform(affine if sform else None, code=sform)
    image.set_qform(affine if qform else None, code=qform)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def read(path, volume=0):
    return read_series(find_series(path)[0], ReadOptions(volume=volume))


def random_array(dtype, shape=SHAPE):
    generator = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(max(info.min, -3000), min(info.max, 3000), size=shape, dtype=dtype)


def assert_same_place(volume, image):
    """Value and place of every voxel: our (d, h, w) in LPS mm is nibabel's (w, h, d) in RAS mm."""
    values = np.asarray(image.dataobj)[..., 0] if image.ndim == 4 else np.asarray(image.dataobj)
    ours = volume.voxels.astype(np.float64) * volume.slope + volume.intercept
    np.testing.assert_allclose(ours, values.transpose(2, 1, 0), rtol=1e-6)
    for index in np.ndindex(*volume.voxels.shape):
        lps = volume.affine_lps_mm @ [*index, 1]
        ras = image.affine @ [*index[::-1], 1]
        np.testing.assert_allclose(lps, [-ras[0], -ras[1], ras[2], 1], atol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_types(tmp_path, dtype, name, kind):
    image = kind(random_array(dtype), oblique(1), dtype=dtype)
    nibabel.save(image, tmp_path / name)
    volume = read(tmp_path / name)
    assert_same_place(volume, nibabel.load(tmp_path / name))
    kept = {"uint8": "uint8", "int8": "int16", "int16": "int16", "uint16": "uint16"}
    assert volume.voxels.dtype == kept.get(dtype, "float32")
    assert volume.voxels.flags.c_contiguous
    if dtype in kept:
        levels, counts = np.unique(volume.voxels, return_counts=True)
        assert volume.histogram.first == levels[0]
        np.testing.assert_array_equal(volume.histogram.counts[volume.histogram.counts > 0], counts)
    else:
        assert volume.histogram is None


@pytest.mark.parametrize(("slope", "intercept", "kept"), [(2.5, -7.0, True), (0.0, 3.0, True), (-1.5, 4.0, False)])
def test_scaling(tmp_path, slope, intercept, kept):
    path = save(tmp_path / "a.nii", random_array("int16"), oblique(2))
    data = bytearray(path.read_bytes())
    data[112:120] = struct.pack("<ff", slope, intercept)
    path.write_bytes(data)
    volume = read(path)
    assert_same_place(volume, nibabel.load(path))
    assert (volume.voxels.dtype == np.int16) == kept
    assert volume.slope > 0


def test_big_endian(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(random_array("int16"), oblique(3), header), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\0\0\1\x5c"
    volume = read(tmp_path / "a.nii")
    assert_same_place(volume, nibabel.load(tmp_path / "a.nii"))
    assert volume.voxels.dtype.isnative


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_header_extension_of_any_size_is_passed_over(tmp_path, name, kind):
    """AFNI keeps the history of a data set there, as XML of some kB."""
    image = kind(random_array("int16"), oblique(3))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("afni", b"<AFNI_attributes/>" * 1000))
    nibabel.save(image, tmp_path / name)
    assert_same_place(read(tmp_path / name), nibabel.load(tmp_path / name))


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
def test_sform_and_qform_precede_as_in_nibabel(tmp_path, sform, qform):
    image = nibabel.Nifti1Image(random_array("int16"), np.eye(4))
    image.set_sform(oblique(4), code=sform)
    image.set_qform(oblique(5), code=qform)
    nibabel.save(image, tmp_path / "a.nii")
    assert_same_place(read(tmp_path / "a.nii"), nibabel.load(tmp_path / "a.nii"))


def test_neither_form_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", random_array("int16"), np.eye(4), sform=0, qform=0)
    with pytest.raises(SeriesError, match=r"a\.nii: neither sform nor qform is set"):
        read(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_volumes(tmp_path, name):
    array = random_array("int16", (5, 4, 3, 6))
    path = save(tmp_path / name, array, oblique(6))
    for number in range(6):
        volume = read(path, number)
        np.testing.assert_array_equal(volume.voxels, array[..., number].T)
        assert (volume.series.volume_index, volume.series.volumes) == (number, 6)
        assert any("holds 6 volumes" in warning for warning in volume.series.warnings)
    with pytest.raises(SeriesError, match="has 6 volumes, --volume 6 is none of them"):
        read(path, 6)
    with pytest.raises(SeriesError, match="--volume -1 is none"):
        read(path, -1)


def test_the_uid_names_the_bytes(tmp_path):
    one = find_series(save(tmp_path / "a.nii", random_array("int16"), oblique(1)))[0].uid
    again = find_series(save(tmp_path / "b.nii", random_array("int16"), oblique(1)))[0].uid
    other = find_series(save(tmp_path / "c.nii", random_array("int16"), oblique(2)))[0].uid
    assert one == again != other
    assert one.startswith("2.25.")
    assert len(one) <= 64


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((5, 4, 3, 2, 2), np.int16), r"has the shape \(5, 4, 3, 2, 2\)"),
        (np.ones((5, 4), np.int16), r"has the shape \(5, 4\)"),
        (np.ones(SHAPE, np.complex64), "holds complex64 voxels"),
        (np.ones(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "real numbers are read"),
        (np.full(SHAPE, np.nan, np.float32), r"not finite \(NaN or infinity\): write"),
    ],
)
def test_what_is_no_volume(tmp_path, array, message):
    path = save(tmp_path / "a.nii", array, np.eye(4))
    with pytest.raises(SeriesError, match=message) as error:
        read(path)
    assert str(error.value).startswith("a.nii: ")


def test_singular_affine(tmp_path):
    path = save(tmp_path / "a.nii", random_array("int16"), np.eye(4), qform=0)
    data = bytearray(path.read_bytes())
    data[280:296] = data[296:312]  # the first row of the sform becomes the second
    path.write_bytes(data)
    with pytest.raises(SeriesError, match=r"a\.nii: .*orientation cannot be told"):
        read(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("length", [0, 10, 200, 347, 352, 360, 470])
def test_truncated(tmp_path, name, length):
    plain = save(tmp_path / "whole.nii", random_array("int16"), np.eye(4)).read_bytes()
    data = plain[:length] if name == "a.nii" else gzip.compress(plain)[: length // 4]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SeriesError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(name)
    assert len(str(error.value).splitlines()) == 1


def test_a_header_that_claims_more_than_memory(tmp_path):
    path = save(tmp_path / "a.nii", random_array("int16"), np.eye(4))
    data = bytearray(path.read_bytes())
    data[40:56] = struct.pack("<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1)
    path.write_bytes(data)
    with pytest.raises(SeriesError, match="more than 16 GiB"):
        read(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_fuzzed(tmp_path, name):
    plain = save(tmp_path / "whole.nii", random_array("int16"), oblique(1)).read_bytes()
    generator = np.random.default_rng(12)
    for _ in range(400):
        data = bytearray(plain if generator.random() < 0.7 else gzip.compress(plain, mtime=0))
        for place in generator.integers(0, min(len(data), 380), size=3):
            data[place] = generator.integers(256)
        if name.endswith("gz") and data[:2] != b"\x1f\x8b":
            data = gzip.compress(bytes(data), 1)
        (tmp_path / name).write_bytes(data)
        try:
            volume = read(tmp_path / name)
        except SeriesError:
            continue
        image = nibabel.load(tmp_path / name)
        if np.isfinite(image.affine).all():
            assert volume.voxels.shape == image.shape[2::-1]


@pytest.mark.parametrize(("units", "mm"), [("meter", 1e3), ("mm", 1), ("micron", 1e-3), ("unknown", 1)])
def test_what_is_not_in_millimetres_is_scaled(tmp_path, units, mm):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    image = nibabel.Nifti1Image(random_array("int16"), affine / [[mm], [mm], [mm], [1]])
    image.header.set_xyzt_units(units)
    nibabel.save(image, tmp_path / "a.nii")
    spacing = np.linalg.norm(read(tmp_path / "a.nii").affine_lps_mm[:3, :3], axis=0)
    np.testing.assert_allclose(spacing, [4, 3, 2], rtol=1e-5)


def test_a_mask_with_hardly_anything_in_it_is_read(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((512, 512, 192)), np.eye(4)), tmp_path / "mask.nii.gz")  # 384 MiB
    assert read(tmp_path / "mask.nii.gz").voxels.shape == (192, 512, 512)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    plain = save(tmp_path / "a.nii", random_array("int16"), np.eye(4)).read_bytes()
    header = bytearray(plain[:352])
    header[40:56] = struct.pack("<8h", 3, 2048, 1024, 1024, 1, 1, 1, 1)  # 4 GiB
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(header + bytes(1 << 20)))
    with pytest.raises(SeriesError, match=r"b\.nii\.gz: unpacks to more than 200 times its size"):
        read(tmp_path / "b.nii.gz")


def test_voxels_that_begin_gigabytes_into_a_small_file_are_refused(tmp_path):
    """To get there all before them is unpacked."""
    plain = bytearray(save(tmp_path / "a.nii", random_array("int16"), np.eye(4)).read_bytes())
    plain[108:112] = struct.pack("<f", 15 << 30)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain))
    with pytest.raises(SeriesError, match=r"b\.nii\.gz: unpacks to more than 200 times its size"):
        read(tmp_path / "b.nii.gz")
