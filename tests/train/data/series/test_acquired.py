"""Acquired series: as DICOM through independent readers, and against the sample of the same seed on the grid."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from decipher_rt.preprocess import Preprocessor, build_graph
from decipher_rt.series import find_series, read_series
from decipher_rt.train.data import simulate
from decipher_rt.train.data.scene import draw_scene
from decipher_rt.train.data.series import acquire, write_dicom

# Decimal strings of 16 characters.
AFFINE_MM = 1e-4


def seed_of(anatomy, family, plane) -> int:
    for seed in range(3000):
        scene = draw_scene(seed, anatomy)
        voxels = np.prod(scene.prescription.shape)
        if (scene.protocol.family, scene.prescription.plane) == (family, plane) and voxels < 4e6:
            return seed
    raise AssertionError((family, plane))


@pytest.fixture(scope="module", params=[("epi", "axial"), ("flash2d", "sagittal"), ("tse", "coronal")], ids=str)
def written(request, anatomy, tmp_path_factory):
    series = acquire(seed_of(anatomy, *request.param), anatomy)
    folder = tmp_path_factory.mktemp("series") / "dicom"
    return series, folder, write_dicom(series, folder)


def test_highdicom_finds_the_same_volume(written):
    highdicom = pytest.importorskip("highdicom")
    series, _, files = written
    volume = highdicom.get_volume_from_series([pydicom.dcmread(f) for f in files], orientation_tol=1e-4)
    # highdicom may order the slices the other way.
    if not np.allclose(volume.affine, series.affine_lps_mm, atol=AFFINE_MM):
        volume = volume.flip_spatial(0)
    np.testing.assert_allclose(volume.affine, series.affine_lps_mm, atol=AFFINE_MM)
    np.testing.assert_array_equal(volume.array, series.voxels)


def test_dcm2niix_finds_the_same_affine_and_voxels(written, tmp_path):
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    nibabel = pytest.importorskip("nibabel")
    series, folder, _ = written
    subprocess.run(["dcm2niix", "-p", "n", "-f", "out", "-o", tmp_path, folder], check=True, capture_output=True)
    (nifti,) = tmp_path.glob("out*.nii*")
    image = nibabel.load(nifti)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    data = np.asarray(image.dataobj)
    assert sorted(data.shape) == sorted(series.voxels.shape)
    rng = np.random.default_rng(0)
    for _ in range(50):  # the same patient position holds the same value
        ijk = [int(rng.integers(n)) for n in data.shape]
        point = lps @ [*ijk, 1]
        dhw = np.linalg.solve(series.affine_lps_mm, point)[:3]
        np.testing.assert_allclose(dhw, np.round(dhw), atol=5e-3)
        assert data[tuple(ijk)] == series.voxels[tuple(np.round(dhw).astype(int))]


def test_header_says_what_was_simulated_and_that_it_is_simulated(written):
    series, _, files = written
    first = pydicom.dcmread(files[0])
    assert first.SOPClassUID == pydicom.uid.MRImageStorage
    assert first.PatientName == "SIMULATED^HEAD"
    assert not first.StudyDate
    assert not first.PatientBirthDate
    assert first.EchoTime == series.header.echo_time_ms
    assert first.RepetitionTime == series.header.repetition_time_ms
    assert first.MagneticFieldStrength == series.header.field_strength_t
    assert first.SliceThickness == pytest.approx(series.thickness_mm)
    assert len({pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files}) == len(files)
    assert all(uid.is_valid for uid in (first.SOPInstanceUID, first.StudyInstanceUID, first.FrameOfReferenceUID))


def test_writing_is_deterministic_and_never_into_a_full_folder(written, tmp_path):
    series, folder, files = written
    again = write_dicom(series, tmp_path / "again")
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in files]
    with pytest.raises(FileExistsError, match="not empty"):
        write_dicom(series, folder)


def test_lesions_lie_at_their_patient_position(anatomy):
    seed = next(s for s in range(500) if _small_with_lesion(s, anatomy))
    series = acquire(seed, anatomy)
    assert series.lesions
    labelled = np.argwhere(series.tissue == 4)
    positions = labelled @ series.affine_lps_mm[:3, :3].T + series.affine_lps_mm[:3, 3]
    for lesion in series.lesions:
        radius = np.linalg.norm(np.array(lesion.size_mm)) / 2
        distance = np.linalg.norm(positions - np.array(lesion.center_lps_mm), axis=1)
        inside = (distance <= radius + 1e-6).sum() * abs(np.linalg.det(series.affine_lps_mm[:3, :3])) / 1000
        assert inside >= 0.99 * lesion.volume_ml


def _small_with_lesion(seed, anatomy):
    scene = draw_scene(seed, anatomy)
    if scene.protocol.sequence not in ("FLAIR", "T2w"):  # where every lesion is bright
        return False
    return len(scene.lesions) == 1 and scene.lesions[0].radii_mm.min() > 7 and np.prod(scene.prescription.shape) < 2e6


def test_the_runtime_sees_the_sample_that_training_saw(written, anatomy, grid):
    series, folder, _ = written
    volume = read_series(find_series(folder)[0])
    np.testing.assert_array_equal(volume.voxels.shape, series.voxels.shape)
    seen = Preprocessor(build_graph(grid, "cpu"), grid)(volume)
    trained = simulate(series.scene.seed, anatomy, grid, kind="head")
    np.testing.assert_allclose(seen.affine_lps_mm, trained.affine_lps_mm, atol=AFFINE_MM)
    assert np.corrcoef(seen.volume.ravel(), trained.volume.ravel())[0, 1] > 0.97
    # The coarse map has softer borders: its brightest half percent is a little less bright.
    assert trained.window[1] == pytest.approx(seen.window[1], rel=0.15)
    assert trained.volumes_ml["brain"] == pytest.approx(series.volumes_ml["brain"], rel=0.03)
