"""Segmentations as NIfTI lie voxel for voxel over their source, judged by nibabel alone."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from decipher_rt.label_map import LabelMap, on_source, strided_affine, within_source
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Preprocessor
from decipher_rt.series import find_series, read_series
from decipher_rt.volume import SeriesInfo, Volume
from decipher_rt.writers.segmentation import nifti_affine, nifti_name, segmentation_nifti

LABELS = ("background", "left", "high")
SPEC = Preprocessing((24, 32, 40), (5.0, 4.0, 3.0), (8, 8, 8), (60,))


def read_nifti(content: bytes, folder: Path) -> nibabel.Nifti1Image:
    path = folder / "labels.nii.gz"
    path.write_bytes(content)
    return nibabel.load(path)


def label_of_ras(ras: np.ndarray) -> np.ndarray:
    """What the map says at points in RAS mm: left half 1, and 2 above 10 mm."""
    return np.where(ras[..., 2] > 10, 2, np.where(ras[..., 0] < 0, 1, 0)).astype(np.uint8)


def map_on_grid(affine_lps_mm: np.ndarray, stride: int = 1) -> LabelMap:
    shape = tuple(size // stride for size in SPEC.grid_shape)
    affine = strided_affine(affine_lps_mm, stride)
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return LabelMap(label_of_ras(points * [-1, -1, 1]), LABELS, affine)


def stored(order, flips, spacing=(2.5, 1.5, 1.2), shape=(40, 60, 70), turn=0.0) -> Volume:
    """A volume around the origin whose axes (d, h, w) run along S, P, L, permuted, reversed and turned."""
    axes = np.fliplr(np.eye(3))[:, list(order)] * np.where(flips, -1, 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [3.3, -2.1, 1.7]
    voxels = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    return Volume(voxels, affine, SeriesInfo("1.2.3", Path("x"), files=1))


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (True, True, True)])
def test_each_voxel_has_the_label_of_its_place(tmp_path, order, flips, stride):
    """The label at a voxel is that of the grid's voxel it lies in: away from borders, that of the place itself."""
    volume = stored(order, flips, turn=0.2)
    grid = Preprocessor(None, SPEC, threads=1)(volume)
    image = read_nifti(segmentation_nifti(map_on_grid(grid.affine_lps_mm, stride), volume, "tissue"), tmp_path)
    d, h, w = volume.voxels.shape
    assert image.shape == (w, h, d)
    labels = np.asarray(image.dataobj)
    assert labels.dtype == np.uint8
    ras = nibabel.affines.apply_affine(image.affine, np.moveaxis(np.indices(labels.shape), 0, -1))
    # A voxel's nearest grid voxel is at most half of its diagonal away.
    reach = np.linalg.norm(SPEC.spacing_mm) * stride / 2
    clear = (np.abs(ras[..., 2] - 10) > reach) & (np.abs(ras[..., 0]) > reach)
    middle = np.linalg.inv(grid.affine_lps_mm) @ [0, 0, 0, 1]
    index = nibabel.affines.apply_affine(np.linalg.inv(grid.affine_lps_mm), ras * [-1, -1, 1])
    covered = ((index > 0) & (index < np.array(SPEC.grid_shape) - 1)).all(axis=-1)
    assert (middle[:3] > 0).all()
    assert (clear & covered).mean() > 0.2
    assert np.array_equal(labels[clear & covered], label_of_ras(ras)[clear & covered])
    outside = ((index < -0.5 - 1e-6) | (index > np.array(SPEC.grid_shape) - 0.5 + 1e-6)).any(axis=-1)
    assert not labels[outside].any()


def test_header_says_what_it_is(tmp_path):
    volume = stored((0, 1, 2), (False, True, False))
    content = segmentation_nifti(map_on_grid(Preprocessor(None, SPEC)(volume).affine_lps_mm), volume, "tissue")
    image = read_nifti(content, tmp_path)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header.get_intent()[0] == "label"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.get_qform() == pytest.approx(image.get_sform(), abs=1e-4)
    assert content == segmentation_nifti(map_on_grid(Preprocessor(None, SPEC)(volume).affine_lps_mm), volume, "tissue")
    assert gzip.decompress(content)[344:348] == b"n+1\0"


def test_a_sheared_source_is_stated_by_the_sform_alone(tmp_path):
    straight = stored((0, 1, 2), (False, False, False))
    affine = straight.affine_lps_mm.copy()
    affine[1, 0] += 0.4  # gantry tilt: slices shift towards posterior
    volume = Volume(straight.voxels, affine, straight.series)
    grid = Preprocessor(None, SPEC)(volume)
    image = read_nifti(segmentation_nifti(map_on_grid(grid.affine_lps_mm), volume, "tissue"), tmp_path)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    assert image.affine == pytest.approx(np.diag([-1, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]], abs=1e-5)


@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_a_nifti_source_gets_its_own_affine_back(tmp_path, flips):
    """Read by our reader, written by our writer: shape and affine are those that nibabel sees in the source."""
    affine = np.diag([*(s * f for s, f in zip((1.1, 1.4, 3.0), flips, strict=True)), 1.0])
    affine[:3, 3] = 7, -11, 13
    data = np.random.default_rng(1).integers(0, 500, (30, 26, 12)).astype(np.int16)
    nibabel.Nifti1Image(data, affine).to_filename(tmp_path / "source.nii.gz")
    volume = read_series(find_series(tmp_path / "source.nii.gz")[0])
    grid = Preprocessor(None, SPEC, threads=1)(volume)
    image = read_nifti(segmentation_nifti(map_on_grid(grid.affine_lps_mm), volume, "tissue"), tmp_path)
    assert image.shape == data.shape
    assert image.affine == pytest.approx(affine, abs=1e-5)


def test_one_plane_is_that_of_the_whole():
    volume = stored((1, 2, 0), (True, False, False))
    labels = map_on_grid(Preprocessor(None, SPEC, threads=1)(volume).affine_lps_mm)
    whole = on_source(labels, volume.affine_lps_mm, volume.voxels.shape)
    for axis in range(3):
        planes = [None, None, None]
        planes[axis] = 5
        plane = on_source(labels, volume.affine_lps_mm, volume.voxels.shape, planes)
        assert np.array_equal(np.take(plane, 0, axis), np.take(whole, 5, axis))


def test_what_lies_outside_the_source_has_no_volume():
    """A source smaller than the grid: the map's volume within it is that of the file, up to the size of its voxels."""
    volume = stored((0, 1, 2), (False, False, False), shape=(16, 30, 40))
    grid = Preprocessor(None, SPEC, threads=1)(volume)
    full = LabelMap(np.ones(SPEC.grid_shape, np.uint8), LABELS, grid.affine_lps_mm)
    inside = LabelMap(within_source(full, volume.affine_lps_mm, volume.voxels.shape), LABELS, grid.affine_lps_mm)
    acquired_ml = np.prod([16 * 2.5, 30 * 1.5, 40 * 1.2]) / 1000
    assert full.volumes_ml()["left"] > 2 * acquired_ml
    assert inside.volumes_ml()["left"] == pytest.approx(acquired_ml, rel=0.1)
    written = on_source(inside, volume.affine_lps_mm, volume.voxels.shape)
    assert written.mean() > 0.9


@pytest.mark.parametrize(
    ("head", "file"), [("tissue", "tissue.nii.gz"), ("../../x", ".._.._x.nii.gz"), ("a b\0", "a_b_.nii.gz")]
)
def test_a_file_is_named_inside_its_folder(head, file):
    assert nifti_name(head) == file


@pytest.mark.parametrize("rounding", [-1e-12, 0.0, 1e-12])
def test_a_plane_midway_goes_the_same_way_whatever_rounding_does(rounding):
    voxels = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None], (4, 2, 2)).copy()
    label_map = LabelMap(voxels, ("background", "a", "b", "c"), np.eye(4))
    midway = np.eye(4)
    midway[0, 3] = 0.5 + rounding
    assert on_source(label_map, midway, (4, 2, 2))[:, 0, 0].tolist() == [1, 2, 3, 0]
    assert within_source(label_map, midway, (3, 2, 2))[:, 0, 0].tolist() == [0, 1, 2, 0]


def test_an_axis_too_long_for_nifti_1_is_written_as_nifti_2(tmp_path):
    volume = stored((0, 1, 2), (False, False, False), spacing=(2.5, 1.5, 0.004), shape=(2, 3, 40_000))
    image = read_nifti(segmentation_nifti(map_on_grid(volume.affine_lps_mm, 1), volume, "tissue"), tmp_path)
    assert isinstance(image, nibabel.Nifti2Image)
    assert image.shape == (40_000, 3, 2)
    np.testing.assert_allclose(image.affine, nifti_affine(volume.affine_lps_mm))
