"""find_series and read_series on whatever lies under a path."""

import logging
import shutil
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import MediaStorageDirectoryStorage

from decipher_rt import nifti
from decipher_rt.dicom.walk import UnusualFileError, Walker
from decipher_rt.errors import SeriesError
from decipher_rt.series import ReadOptions, find_series, read_series


@pytest.fixture
def study(tmp_path, write_series, synthetic):
    """Two series in nested folders, with what else lies around on an export medium."""
    root = tmp_path / "study"
    write_series(root / "DICOM" / "S0001", seed=1, SeriesDescription="t1")
    write_series(root / "DICOM" / "more" / "S0002", (4, 5, 6), seed=2, SeriesDescription="t2")
    (root / "README.TXT").write_text("viewer: run autorun.exe")
    (root / "autorun.exe").write_bytes(b"MZ" + bytes(range(256)) * 10)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "empty").write_bytes(b"")
    (root / "index.html").write_bytes(b"<html>" + b"x" * 200)
    (root / "eight").write_bytes(b"\x08\x00" + bytes(range(200)))
    for name, sop_class in (("DICOMDIR", MediaStorageDirectoryStorage), ("SR", pydicom.uid.EnhancedSRStorage)):
        dataset = synthetic.slice_dataset(
            np.zeros((2, 2), np.uint16), synthetic.oblique_affine(), 0, "1.9", PixelData=None
        )
        dataset.SOPClassUID = sop_class
        synthetic.save(dataset, root / name)
    return root


def test_every_series_of_a_study(study, synthetic):
    first, second = find_series(study)
    assert [(one.description, one.files, one.path) for one in (first, second)] == [
        ("t1", 6, study / "DICOM" / "S0001"),
        ("t2", 4, study / "DICOM" / "more" / "S0002"),
    ]
    volume = read_series(first)
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels((6, 10, 12), seed=1))
    np.testing.assert_array_equal(read_series(second).voxels, synthetic.voxels((4, 5, 6), seed=2))
    assert volume.series.uid == first.uid == pydicom.dcmread(study / "DICOM/S0001/0000.dcm").SeriesInstanceUID
    assert volume.series.manufacturer == "Synthetic"
    assert sorted(warning.split(" (")[0] for warning in volume.series.warnings) == [
        "2 files ignored: a DICOM object without an image",
        "6 files ignored: not a DICOM file",
    ]


def test_the_same_study_as_a_zip(study, tmp_path):
    shutil.make_archive(str(tmp_path / "study"), "zip", study)
    packed, plain = find_series(tmp_path / "study.zip"), find_series(study)
    assert [one.uid for one in packed] == [one.uid for one in plain]
    for ours, theirs in zip(packed, plain, strict=True):
        np.testing.assert_array_equal(read_series(ours).voxels, read_series(theirs).voxels)


def test_files_of_any_name_in_any_order_in_any_folder(tmp_path, write_series, synthetic):
    folder = write_series(tmp_path / "s", order=[3, 0, 5, 1, 4, 2])
    names = ["IM1", "z/y/x/1.2.840.dcm", "a b.ima", "ünïcode", "0001", "z/.hidden"]
    for path, name in zip(sorted(folder.iterdir()), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(folder / name)
    np.testing.assert_array_equal(read_series(find_series(folder)[0]).voxels, synthetic.voxels((6, 10, 12)))


def test_one_file_is_one_slice(tmp_path, write_series, synthetic):
    folder = write_series(tmp_path / "s")
    volume = read_series(find_series(folder / "0002.dcm")[0])
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels((6, 10, 12))[2:3])
    whole = read_series(find_series(folder)[0])
    np.testing.assert_allclose(volume.affine_lps_mm[:, :3], whole.affine_lps_mm[:, :3], atol=1e-6)
    assert [warning.split(":")[0] for warning in volume.series.warnings] == ["one slice only"]
    assert not whole.series.warnings


@pytest.mark.parametrize(
    "name",
    [
        "ExplVR_LitEndNoMeta.dcm",
        "no_meta.dcm",
        "meta_missing_tsyntax.dcm",
        "no_meta_group_length.dcm",
        "UN_sequence.dcm",
    ],
)
def test_files_with_damaged_file_meta_information_are_read_or_refused(name):
    from pathlib import Path

    from pydicom.data import get_testdata_file

    path = Path(get_testdata_file(name))
    try:
        for series in find_series(path, ReadOptions(any_modality=True)):
            read_series(series, ReadOptions(any_modality=True))
    except SeriesError as error:
        message = str(error)
        assert message.startswith(name) or str(path) in message


def test_files_without_preamble(tmp_path, write_series, synthetic):
    folder = write_series(tmp_path / "s", transfer_syntax="1.2.840.10008.1.2")
    for path in folder.iterdir():
        data = path.read_bytes()
        length = int.from_bytes(data[140:144], "little")
        path.write_bytes(data[144 + length :])
    np.testing.assert_array_equal(read_series(find_series(folder)[0]).voxels, synthetic.voxels((6, 10, 12)))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.dcm", b"", "x.dcm: empty, its copy was cut off"),
        ("x.dcm", b"hello", "not a DICOM file, nor NIfTI"),
        ("x.nii", b"hello", "not a readable NIfTI header"),
        ("x.nii.gz", b"hello", "cannot be read"),
        ("x.zip", b"hello", "not a readable zip archive"),
    ],
)
def test_one_file_that_is_nothing(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SeriesError, match=message) as error:
        read_series(find_series(path)[0])
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_folders_without_series(tmp_path, study):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeriesError, match="empty: holds no files"):
        find_series(tmp_path / "empty")
    shutil.rmtree(study / "DICOM")
    with pytest.raises(SeriesError, match=r"study: no series with images in 8 files \(first: "):
        find_series(study)
    with pytest.raises(SeriesError, match=r"SR: a DICOM object without an image"):
        find_series(study / "SR")


def test_the_patient_stays_in_the_files_unless_asked_for(study):
    keep = ReadOptions(keep_phi=True)
    for finding, reading, expected in (
        (ReadOptions(), ReadOptions(), {}),
        (ReadOptions(), keep, {}),
        (keep, ReadOptions(), {}),
        (keep, keep, {"name": "Doe^Jane", "id": "SECRET-1"}),
    ):
        volume = read_series(find_series(study, finding)[0], reading)
        assert volume.series.patient == expected
        assert expected or not any(secret in repr(volume.series) for secret in ("Jane", "SECRET"))


def test_nothing_of_the_patient_is_logged_or_warned_of(tmp_path, write_series, caplog, recwarn):
    """pydicom warns of invalid values with the value itself."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_series(tmp_path / "s", PatientBirthDate="SECRET-BIRTHDAY", PatientID="SECRET-1" * 20)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    for path in folder.iterdir():  # through pydicom: the walker takes no trailing elements
        path.write_bytes(path.read_bytes() + b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0")
    volume = read_series(find_series(folder)[0])
    assert volume.series.patient == {}
    assert "SECRET" not in caplog.text
    assert not recwarn.list


def test_options_reach_the_reader(tmp_path, write_series):
    folder = write_series(tmp_path / "s", Modality="CT", edit=lambda _, index: index != 2)
    (series,) = find_series(folder)
    with pytest.raises(SeriesError, match="--any-modality"):
        read_series(series)
    with pytest.raises(SeriesError, match="--allow-gaps"):
        read_series(series, ReadOptions(any_modality=True))
    with pytest.raises(SeriesError, match="--volume 3"):
        read_series(series, ReadOptions(any_modality=True, allow_gaps=True, volume=3))
    volume = read_series(series, ReadOptions(any_modality=True, allow_gaps=True))
    assert volume.voxels.shape == (6, 10, 12)
    assert volume.series.acquisition.modality == "CT"


def test_dicom_and_nifti_under_one_folder(tmp_path, write_series):
    write_series(tmp_path / "all" / "dicom")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 2), np.int16), np.eye(4)), tmp_path / "all" / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 2), np.complex64), np.eye(4)), tmp_path / "all" / "b.nii")
    dicom, nifti, bad = find_series(tmp_path / "all")
    assert read_series(dicom).voxels.shape == (6, 10, 12)
    assert read_series(nifti).voxels.shape == (2, 3, 4)
    with pytest.raises(SeriesError, match=r"b\.nii: holds complex64"):
        read_series(bad)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "all" / "a.nii.gz", "a.nii.gz")
    (packed,) = find_series(tmp_path / "x.zip")
    assert packed.uid == nifti.uid
    np.testing.assert_array_equal(read_series(packed).voxels, 1)


def test_what_a_mac_adds_and_what_a_run_wrote_are_no_series(tmp_path, write_series):
    study = tmp_path / "study"
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    (study / "__MACOSX").mkdir(parents=True)
    nibabel.save(image, study / "t1.nii.gz")
    (study / "__MACOSX" / "._t1.nii.gz").write_bytes(b"\0\5\26\7" + bytes(100))
    image.header.set_intent("label", name="tissue")
    nibabel.save(image, study / "tissue.nii.gz")
    assert [one.description for one in find_series(study)] == ["t1.nii.gz"]
    assert len(find_series(study / "tissue.nii.gz")) == 1
    (study / "t1.nii.gz").unlink()
    with pytest.raises(SeriesError, match="no series with images"):
        find_series(study)


@pytest.mark.parametrize(("intent", "found"), [("none", ["", "kept.nii"]), ("label", ["kept.nii"])])
def test_a_nifti_file_that_vanishes_after_its_header_does_not_hide_the_others(tmp_path, monkeypatch, intent, found):
    """Of a label map that nobody named no more than the header is read."""
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    nibabel.save(image, tmp_path / "kept.nii")
    image.header.set_intent(intent)
    nibabel.save(image, tmp_path / "a.nii")
    check = nifti.axis_order

    def vanish(affine):
        (tmp_path / "a.nii").unlink(missing_ok=True)  # as by a cleaner, or a server that went away
        return check(affine)

    monkeypatch.setattr(nifti, "axis_order", vanish)
    series = find_series(tmp_path)
    assert [one.uid and one.description for one in series] == found
    assert all("a.nii: cannot be read" in str(one.content) for one in series if not one.uid)


def test_a_dicom_file_that_vanishes_before_pydicom_reads_it_does_not_hide_the_others(
    tmp_path, write_series, monkeypatch
):
    folder = write_series(tmp_path / "s")
    walk = Walker.walk

    def vanish(walker, source):
        if source.path.name == "0002.dcm":
            source.path.unlink()
            raise UnusualFileError("for pydicom")
        return walk(walker, source)

    monkeypatch.setattr(Walker, "walk", vanish)
    good, bad = find_series(folder)
    assert good.files == 5
    assert bad.content == "0002.dcm: No such file or directory"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"ImagesInAcquisition": "170"}, True),
        ({"ImagesInAcquisition": "6"}, False),
        ({"ImagesInAcquisition": "0"}, False),
    ],
)
def test_a_series_that_is_still_arriving_says_so(tmp_path, write_series, header, said):
    """Slices that are not there yet leave no gap; some scanners count them in each header."""
    volume = read_series(find_series(write_series(tmp_path / "a", **header))[0])
    assert any("the header counts 170 images, 6 are here" in warning for warning in volume.series.warnings) == said


@pytest.mark.parametrize("vr", ["SL", "UN"])
def test_the_slices_that_philips_counts(tmp_path, write_series, vr):
    def count(dataset, _):
        dataset.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(
            0x18, vr, 170 if vr == "SL" else b"\xaa\0\0\0"
        )

    volume = read_series(find_series(write_series(tmp_path / "a", edit=count))[0])
    assert any("counts 170" in warning for warning in volume.series.warnings) == (vr == "SL")


@pytest.mark.parametrize(("here", "said"), [(3, True), (6, False)])
def test_philips_counts_places_not_images(tmp_path, write_series, here, said):
    """Two halves of a volume are as many images as a whole one."""
    for echo in (10, 60):

        def edit(dataset, index, echo=echo):
            dataset.EchoTime = echo
            dataset.SOPInstanceUID = f"1.2.3.{echo}.{index}"
            dataset.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x18, "SL", 6)
            return index < here

        write_series(tmp_path / "a", series_uid="1.2.3", prefix=f"{echo}-", seed=echo, edit=edit)
    volume = read_series(find_series(tmp_path / "a")[0])
    assert volume.series.volumes == 2
    assert any("counts 6 slices, 3 are here" in warning for warning in volume.series.warnings) == said


def test_a_copy_is_no_image_that_arrived(tmp_path, write_series):
    folder = write_series(tmp_path / "a", ImagesInAcquisition="6", edit=lambda _, index: index < 3)
    shutil.copytree(folder, folder / "copy")
    volume = read_series(find_series(folder)[0])
    assert any("counts 6 images, 3 are here" in warning for warning in volume.series.warnings)


def test_an_echo_time_that_varies_in_its_last_digit_is_one_contrast(tmp_path, write_series, synthetic):
    def jitter(dataset, index):
        dataset.EchoTime = [2.98, 2.98, 2.99, 2.98, 2.99, 2.99][index]

    volume = read_series(find_series(write_series(tmp_path / "a", edit=jitter))[0])
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels((6, 10, 12)))


def test_volumes_of_two_contrasts_shifted_by_half_a_slice_are_not_one(tmp_path, write_series, synthetic):
    def shifted(dataset, _):
        dataset.EchoTime = 60
        dataset.SeriesInstanceUID = "1.2.3"

    def first(dataset, _):
        dataset.EchoTime = 10
        dataset.SeriesInstanceUID = "1.2.3"

    affine = synthetic.oblique_affine((4, 1, 1), None)
    write_series(tmp_path / "a", affine=affine, edit=first)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 0] / 2
    write_series(tmp_path / "b", affine=moved, edit=shifted)
    with pytest.raises(SeriesError, match=r"2 contrasts .* lie between each other"):
        read_series(find_series(tmp_path)[0])
