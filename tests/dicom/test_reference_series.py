"""The real series against reference.json and against dcm2niix itself."""

import json
import shutil
import subprocess
import zipfile

import nibabel
import numpy as np
import pytest

from decipher_rt.dicom.geometry import canonical_ras
from decipher_rt.series import ReadOptions, find_series, read_series

AFFINE_MM = 1e-3
VALUE_RELATIVE = 1e-4
NAMES = [
    "ge_epi_fmri_ax", "ge_t1_mprage_ax", "philips_enhanced_fmap", "philips_t1_mprage_sag", "siemens_epi_fmri",
    "siemens_t1_fl2d_sag_hfp", "siemens_t1_fl2d_sag_hfs", "siemens_xa10_enhanced",
]  # fmt: skip
# Which image of dcm2niix, and which volume in it, each volume of ours must equal.
SEVERAL_VOLUMES = {
    "ge_epi_fmri_ax": [(0, number) for number in range(10)],
    "siemens_epi_fmri": [(0, 0), (0, 1)],
    "siemens_xa10_enhanced": [(0, number) for number in range(4)],
    "philips_enhanced_fmap": [(0, None), (1, None)],
}


def in_ras(volume):
    frame = canonical_ras(volume.affine_lps_mm, volume.voxels.shape)
    values = volume.voxels.transpose(frame.permutation)[tuple(slice(None, None, -1 if f else 1) for f in frame.flips)]
    return frame, values * volume.slope + volume.intercept


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(shared_data, name):
    reference = json.loads((shared_data / "reference.json").read_text())[name][0]
    (series,) = find_series(shared_data / "dicom" / name)
    volume = read_series(series)
    frame, values = in_ras(volume)
    assert list(frame.shape_ras) == reference["shape"][:3]
    np.testing.assert_allclose(frame.affine_ras_mm, reference["affine_ras_mm"], rtol=0, atol=AFFINE_MM)
    first = reference["first_volume"]
    for probe in first["probes"]:
        assert values[tuple(probe["ijk"])] == pytest.approx(probe["value"], rel=VALUE_RELATIVE)
    for name, found in (("min", values.min()), ("max", values.max()), ("mean", values.mean()), ("std", values.std())):
        assert found == pytest.approx(first[name], rel=VALUE_RELATIVE, abs=1e-6)
    assert volume.series.volumes == (reference["shape"][3:] or [volume.series.volumes])[0]
    levels, counts = np.unique(volume.voxels, return_counts=True)
    assert volume.histogram.first == levels[0]
    np.testing.assert_array_equal(volume.histogram.counts[levels - levels[0]], counts)
    assert volume.histogram.counts.sum() == volume.voxels.size


def test_acquisition_of_real_series(shared_data):
    def acquisition(name):
        return read_series(find_series(shared_data / "dicom" / name)[0]).series.acquisition

    epi = acquisition("ge_epi_fmri_ax")
    assert (epi.echo_time_ms, epi.flip_angle_deg, epi.field_strength_t, epi.body_part) == (30, 60, 3, "BRAIN")
    enhanced = acquisition("siemens_xa10_enhanced")
    assert (enhanced.echo_time_ms, enhanced.repetition_time_ms, enhanced.flip_angle_deg) == (30, 500, 52)
    assert enhanced.scanning_sequence == "EP\\GR"
    assert enhanced.modality == "MR"
    mprage = acquisition("ge_t1_mprage_ax")
    assert (mprage.inversion_time_ms, mprage.scanning_sequence) == (1000, "RM\\IR")


@pytest.mark.parametrize("name", list(SEVERAL_VOLUMES))
def test_every_volume_equals_dcm2niix(shared_data, tmp_path, name):
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed (Debian package dcm2niix)")
    command = ["dcm2niix", "-p", "n", "-b", "n", "-z", "n", "-f", "%s", "-o", str(tmp_path)]
    subprocess.run([*command, str(shared_data / "dicom" / name)], check=True, capture_output=True)
    images = [nibabel.as_closest_canonical(nibabel.load(path)) for path in sorted(tmp_path.glob("*.nii"))]
    (series,) = find_series(shared_data / "dicom" / name)
    expected = SEVERAL_VOLUMES[name]
    for number, (image, time) in enumerate(expected):
        volume = read_series(series, ReadOptions(volume=number))
        assert (volume.series.volume_index, volume.series.volumes) == (number, len(expected))
        frame, values = in_ras(volume)
        theirs = np.asarray(images[image].dataobj)
        theirs = theirs if time is None else theirs[..., time]
        assert frame.shape_ras == theirs.shape
        np.testing.assert_allclose(frame.affine_ras_mm, images[image].affine, rtol=0, atol=AFFINE_MM)
        np.testing.assert_allclose(values, theirs, rtol=VALUE_RELATIVE, atol=VALUE_RELATIVE)


def test_field_map_is_reported_and_not_the_default(shared_data):
    (series,) = find_series(shared_data / "dicom" / "philips_enhanced_fmap")
    volume = read_series(series)
    assert volume.series.acquisition.image_type[-1] == "M"
    assert any("field map" in warning and "--volume 1" in warning for warning in volume.series.warnings)
    field_map = read_series(series, ReadOptions(volume=1))
    assert field_map.series.acquisition.image_type[-1] == "FIELD_MAP"
    assert field_map.intercept == -500


def test_the_same_series_from_a_zip(shared_data, tmp_path):
    folder = shared_data / "dicom" / "siemens_t1_fl2d_sag_hfs"
    archive = tmp_path / "study.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for path in folder.iterdir():
            out.write(path, f"deep/er/{path.name}")
    (packed,) = find_series(archive)
    ours, theirs = read_series(packed), read_series(find_series(folder)[0])
    np.testing.assert_array_equal(ours.voxels, theirs.voxels)
    np.testing.assert_array_equal(ours.affine_lps_mm, theirs.affine_lps_mm)
    assert (packed.uid, packed.files) == (theirs.series.uid, 35)


def test_all_real_series_under_one_folder(shared_data):
    found = find_series(shared_data / "dicom")
    assert len(found) == len(NAMES)
    assert sum(series.files for series in found) == sum(
        1 for path in (shared_data / "dicom").rglob("*") if path.is_file()
    )
