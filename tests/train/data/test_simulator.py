"""Samples: determinism, and everything they state against what is in their own arrays."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from decipher_rt.train.data import simulate
from decipher_rt.train.data.sample import KINDS, LABELS
from decipher_rt.train.data.scene import draw_scene
from decipher_rt.train.data.simulator import MIN_LESION_ML, draw_kind, simulate_scene
from decipher_rt.train.text.findings import sample_findings

SEEDS = range(24)


@pytest.fixture(scope="module")
def heads(anatomy, grid):
    return [simulate(seed, anatomy, grid, kind="head") for seed in SEEDS]


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_sample_other_seed_other_sample(anatomy, small_grid, kind):
    first, again, other = (simulate(seed, anatomy, small_grid, kind=kind) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.volume, again.volume)
    np.testing.assert_array_equal(first.tissue, again.tissue)
    assert (first.window == again.window).all()
    assert first.facts == again.facts
    assert not np.array_equal(first.volume, other.volume)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_shape_and_types_of_the_contract(anatomy, small_grid, kind):
    for seed in range(6):
        sample = simulate(seed, anatomy, small_grid, kind=kind)
        assert sample.volume.shape == sample.tissue.shape == small_grid.grid_shape
        assert (sample.volume.dtype, sample.window.dtype, sample.tissue.dtype) == (np.float32, np.float32, np.uint8)
        assert np.isfinite(sample.volume).all()
        assert sample.window[0] < sample.window[1]
        assert sample.labels.kind == kind
        assert (sample.labels.sequence is not None) == (kind == "head")
        if kind != "head":
            assert not sample.labels.lesion
            assert not sample.tissue.any()


def test_kinds_are_drawn_with_about_85_percent_heads(anatomy, small_grid):
    counts = Counter(draw_kind(seed) for seed in range(2000))
    assert 0.82 < counts["head"] / 2000 < 0.88
    assert set(counts) == set(KINDS)
    seed = next(s for s in range(100) if draw_kind(s) == "phantom")
    assert simulate(seed, anatomy, small_grid).labels.kind == "phantom"


def test_unknown_kind_is_refused(anatomy, small_grid):
    with pytest.raises(ValueError, match="expected one of head"):
        simulate(0, anatomy, small_grid, kind="hand")


def test_volumes_are_label_counts(heads, grid):
    voxel_ml = np.prod(grid.spacing_mm) / 1000
    for sample in heads:
        for i, name in enumerate(LABELS[1:], start=1):
            assert sample.volumes_ml[name] == pytest.approx((sample.tissue == i).sum() * voxel_ml)
        assert sample.tissue.max() < len(LABELS)


def test_lesion_boxes_hold_the_mask_and_touch_it(heads, grid):
    found = 0
    spacing = np.array(grid.spacing_mm)
    for sample in heads:
        mask = sample.tissue == LABELS.index("lesion")
        assert mask.any() == sample.labels.lesion == bool(sample.lesions)
        covered = np.zeros_like(mask)
        for lesion in sample.lesions:
            half = np.array(lesion.size_mm) / spacing / 2
            low = np.round(np.array(lesion.center_voxel) - half + 0.5).astype(int)
            high = np.round(np.array(lesion.center_voxel) + half + 0.5).astype(int)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            covered[box] = True
            for axis in range(3):
                others = tuple(i for i in range(3) if i != axis)
                profile = mask[box].any(others)
                assert profile[0]
                assert profile[-1]
            assert lesion.volume_ml >= MIN_LESION_ML
            index = np.linalg.solve(sample.affine_lps_mm, [*lesion.center_lps_mm, 1])[:3]
            np.testing.assert_allclose(index, lesion.center_voxel, atol=1e-6)
            found += 1
        assert (mask <= covered).all()
    assert found >= 8


def test_side_agrees_with_the_patients_axes(anatomy, grid, heads):
    checked = 0
    for seed, sample in zip(SEEDS, heads, strict=True):
        subject = draw_scene(seed, anatomy).subject
        for lesion in sample.lesions:
            from_middle = lesion.center_lps_mm[0] + subject.offset[0]  # offset is RAS: x to the right
            if abs(from_middle) > 20:
                assert lesion.side == ("left" if from_middle > 0 else "right")
                checked += 1
    assert checked >= 4


def test_a_lesion_out_of_sight_is_not_a_lesion(anatomy, grid):
    """Below the head nothing is in view; in noise nothing is seen."""
    import dataclasses

    seed = next(s for s in range(100) if simulate(s, anatomy, grid, kind="head").labels.lesion)
    scene = draw_scene(seed, anatomy)
    away = dataclasses.replace(scene.prescription, centre_mm=scene.prescription.centre_mm - [0, 0, 400.0])
    sample = simulate_scene(dataclasses.replace(scene, prescription=away), anatomy, grid)
    assert not sample.labels.lesion
    assert sample.volumes_ml["brain"] == 0
    noisy = dataclasses.replace(scene, look=dataclasses.replace(scene.look, snr=0.05))
    sample = simulate_scene(noisy, anatomy, grid)
    assert not sample.labels.lesion
    assert sample.volumes_ml["brain"] > 100


def test_findings_state_the_truth(heads):
    for sample in heads:
        found = sample_findings(sample)
        assert found.sequence == sample.labels.sequence
        assert found.field_t == sample.header.field_strength_t
        assert found.ventricles == sample.facts["ventricles"]
        stated = [(lesion.kind, lesion.region, lesion.side, lesion.size_mm) for lesion in found.lesions]
        assert stated == [(x.kind, x.region, x.side, round(max(x.size_mm))) for x in sample.lesions]
    assert any(sample.lesions for sample in heads)


def test_headers_fit_the_sequence(anatomy):
    for seed in range(200):
        protocol = draw_scene(seed, anatomy).protocol
        header = protocol.acquisition()
        assert (header.inversion_time_ms is not None) == (protocol.family in ("mprage", "flair", "flair3d"))
        if protocol.sequence == "T2w":
            assert header.echo_time_ms > 70
        if protocol.sequence == "T2*w":
            assert "GR" in header.scanning_sequence
        if protocol.sequence == "PDw":
            assert header.echo_time_ms < 40
            assert header.repetition_time_ms >= 2000


def test_contrast_has_the_known_order(anatomy):
    checked = Counter()
    for seed in range(60):
        scene = draw_scene(seed, anatomy)
        signal = dict(zip(("grey", "white", "csf"), scene.protocol.signals(scene.tissues)[1:4], strict=True))
        if scene.protocol.sequence == "T1w":
            assert signal["white"] > signal["grey"] > signal["csf"]
        elif scene.protocol.sequence == "T2w":
            assert signal["csf"] > signal["grey"] > signal["white"]
        elif scene.protocol.sequence == "FLAIR":
            assert signal["csf"] < 0.5 * min(signal["grey"], signal["white"])
        checked[scene.protocol.sequence] += 1
    assert min(checked[name] for name in ("T1w", "T2w", "FLAIR")) >= 3


def test_ventricles_grow_with_their_parameter(anatomy, grid):
    import dataclasses

    scene = dataclasses.replace(draw_scene(4, anatomy), lesions=())
    csf = []
    for amount in (0.0, 0.45):
        subject = dataclasses.replace(scene.subject, ventricles=amount)
        csf.append(simulate_scene(dataclasses.replace(scene, subject=subject), anatomy, grid).volumes_ml["csf"])
    assert csf[1] > csf[0] + 8
