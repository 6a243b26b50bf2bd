"""The base anatomy: mixtures, landmarks of MNI space, files."""

from __future__ import annotations

import numpy as np
import pytest

from decipher_rt.train.data.anatomy import Map, anatomy_from_files, write_head
from decipher_rt.train.data.lesions import region_at
from decipher_rt.train.data.tissues import TISSUES

# MNI RAS mm of structures, from published atlases of the space.
LANDMARKS = [
    ((0, -34, 14), "white", 0.5),  # splenium of the corpus callosum
    ((24, -30, 30), "white", 0.7),  # corona radiata
    ((6, -14, 8), "grey", 0.4),  # thalamus
    ((32, 63, -38), "vitreous", 0.9),
    ((-32, 63, -38), "vitreous", 0.9),
    ((30, 44, -66), "air", 0.9),  # maxillary sinus
    ((0, 0, 160), "air", 1.0),
]


def fractions_at(base: Map, point) -> dict[str, float]:
    x, y, z = np.round((np.array(point) - base.origin_mm) / base.step_mm).astype(int)
    z = min(z, base.codes.shape[0] - 1)
    return dict(zip(TISSUES, base.palette[base.codes[z, y, x]].tolist(), strict=True))


@pytest.mark.parametrize(("point", "tissue", "least"), LANDMARKS)
def test_landmarks_lie_where_atlases_say(anatomy, point, tissue, least):
    assert fractions_at(anatomy.heads[0].coarse, point)[tissue] >= least


def test_mixtures_sum_to_one_and_codes_are_in_range(anatomy):
    base = anatomy.heads[0].coarse
    np.testing.assert_allclose(base.palette.sum(1), 1, atol=1e-6)
    assert base.palette.min() >= 0
    assert base.codes.max() < len(base.palette)


def test_brain_volume_is_that_of_the_template(anatomy):
    base = anatomy.heads[0].coarse
    litres = {t: base.fractions(t)[36:].sum() * base.step_mm**3 / 1e6 for t in ("grey", "white", "csf")}
    from nilearn import datasets

    mask = np.asarray(datasets.load_mni152_brain_mask(resolution=2).dataobj).sum() * 8 / 1e6
    assert litres["grey"] + litres["white"] == pytest.approx(mask, rel=0.15)
    assert 0.4 < litres["white"] / (litres["grey"] + litres["white"]) < 0.55


def test_a_ray_from_outside_meets_skin_fat_bone_and_brain_in_this_order(anatomy):
    base = anatomy.heads[0].coarse
    for direction in ((1, 0, 0), (-1, 0, 0), (0, 0, 1), (0.3, -0.5, 0.8)):
        unit = np.array(direction) / np.linalg.norm(direction)
        points = np.array([0.0, -20.0, 20.0]) + np.arange(100, 20, -1.0)[:, None] * unit
        index = np.round((points - np.array(base.origin_mm)) / base.step_mm).astype(int)
        inside = ((index >= 0) & (index < np.array(base.codes.shape[::-1]))).all(1)
        x, y, z = index[inside].T
        mixtures = base.palette[base.codes[z, y, x]]
        first = [int(np.argmax(mixtures[:, TISSUES.index(t)] > 0.3)) for t in ("skin", "fat", "bone", "grey")]
        assert first == sorted(first)
        assert first[0] > 0
        assert len(set(first)) == 4


def test_files_round_trip_and_others_are_refused(anatomy, tmp_path):
    base = anatomy.heads[0].coarse
    small = Map(base.codes[40:48, 40:48, 40:48].copy(), base.palette, base.origin_mm, base.step_mm)
    field = np.random.default_rng(0).normal(size=small.codes.shape).astype(np.float32)
    write_head(tmp_path / "head.npz", small, small, field)
    assert [p.name for p in tmp_path.iterdir()] == ["head.npz"]
    head = anatomy_from_files("other", [tmp_path / "head.npz"]).heads[0]
    np.testing.assert_array_equal(head.coarse.codes, small.codes)
    np.testing.assert_array_equal(head.fine().palette, small.palette)
    np.testing.assert_allclose(head.field_ppm, field, atol=2e-3)
    with np.load(tmp_path / "head.npz") as file:
        content = dict(file)
    content["tissues"] = np.array(["grey", "white"])
    np.savez(tmp_path / "wrong.npz", **content)
    with pytest.raises(ValueError, match=r"wrong\.npz"):
        anatomy_from_files("other", [tmp_path / "wrong.npz"])


@pytest.mark.parametrize(
    ("point", "region"),
    [
        ((40, 36, 20), "frontal lobe"),  # middle frontal gyrus
        ((-38, -22, 56), "frontal lobe"),  # precentral gyrus
        ((-44, -60, 42), "parietal lobe"),  # angular gyrus
        ((56, -20, -10), "temporal lobe"),  # middle temporal gyrus
        ((-28, -20, -16), "temporal lobe"),  # hippocampus
        ((-40, -50, -18), "temporal lobe"),  # fusiform gyrus
        ((12, -88, 4), "occipital lobe"),  # calcarine cortex
        ((24, 2, 4), "deep grey nuclei"),  # putamen
        ((-10, -18, 8), "deep grey nuclei"),  # thalamus
        ((0, -26, -30), "brainstem"),  # pons
        ((24, -64, -36), "cerebellum"),
    ],
)
def test_regions_of_published_coordinates(point, region):
    assert region_at(np.array(point, float)) == region
