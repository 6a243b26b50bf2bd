"""Overlay and outlines lie where the labels and the boxes are, with the right colours beside their names."""

import io
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decipher_rt.boxes import Box
from decipher_rt.label_map import LabelMap
from decipher_rt.result import HeadAnswer, PromptAnswer, Result, ScopeAnswer, describe_series
from decipher_rt.volume import SeriesInfo, Volume
from decipher_rt.writers import views as views_module
from decipher_rt.writers.overlay import BOX_COLOUR, OPACITY, PALETTE, Findings, colour, tinted
from decipher_rt.writers.views import draw_views, orthogonal_views

# A block of 40 x 40 x 40 voxels of 2 mm along L, P, S, with one finding in it.
SIZE, STEP = 40, 2.0
FINDING = ((4, 12), (6, 10), (22, 34))  # voxels along L, P, S: right, anterior, superior
SAR = ((0, 0, 1), (0, -1, 0), (-1, 0, 0))


def patient(order=(2, 1, 0), flips=(False, False, False)) -> tuple[Volume, LabelMap, Box]:
    """The same patient, stored in some order, its labels on the same grid, and the box around the finding."""
    lps = np.zeros((SIZE, SIZE, SIZE), np.uint8)
    lps[tuple(slice(*ends) for ends in FINDING)] = 2
    affine = np.eye(4)
    for axis, (patient_axis, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, axis] = np.eye(3)[patient_axis] * STEP * (-1 if flip else 1)
        affine[:3, 3] += np.eye(3)[patient_axis] * STEP * (SIZE - 1) * flip
    labels = lps.transpose(order)
    for axis, flip in enumerate(flips):
        labels = np.flip(labels, axis) if flip else labels
    labels = np.ascontiguousarray(labels)
    voxels = np.full(labels.shape, 100, np.int16) + np.arange(SIZE).astype(np.int16)
    volume = Volume(voxels, affine, SeriesInfo("1.2.3", Path("x"), description="x", files=1))
    center = tuple((low + high - 1) / 2 * STEP for low, high in FINDING)
    sizes = [(high - low) * STEP for low, high in FINDING]
    box = Box(0.9, center, (sizes[2], sizes[1], sizes[0]), SAR)
    return volume, LabelMap(labels, ("background", "a", "b"), affine), box


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_planes_pass_through_the_box_and_the_labels_fill_it(order, flips):
    volume, labels, box = patient(order, flips)
    views = orthogonal_views(volume, Findings(labels, (box,)))
    for view in views:
        ((top, left, bottom, right),) = view.boxes
        rows, columns = np.nonzero(view.labels == 2)
        found = [rows.min() / SIZE, columns.min() / SIZE, (rows.max() + 1) / SIZE, (columns.max() + 1) / SIZE]
        assert [top, left, bottom, right] == pytest.approx(found, abs=1e-9)
    axial, coronal, _ = views
    # Right is on the left: 28 of 40 voxels lie to the left of the finding, 4 to its right.
    assert axial.boxes[0][1] == pytest.approx(4 / SIZE)
    assert axial.boxes[0][0] == pytest.approx(6 / SIZE)
    assert coronal.boxes[0][0] == pytest.approx((SIZE - 34) / SIZE)


def test_a_box_beside_the_planes_is_not_drawn():
    volume, _, box = patient()
    far = replace(box, center_lps_mm=(70.0, 70.0, 6.0), score=0.5)
    for view in orthogonal_views(volume, Findings(None, (box, far))):
        assert len(view.boxes) == 1


def test_a_box_outside_the_volume_does_no_harm():
    volume, _, box = patient()
    far = replace(box, center_lps_mm=(1e6, -1e6, 1e6))
    assert all(view.pixels.shape == (SIZE, SIZE) for view in orthogonal_views(volume, Findings(None, (far,))))


def test_tint_leaves_the_background_alone():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    labels = np.zeros((16, 16), np.uint8)
    labels[3, 4], labels[5, 6] = 1, 255
    shown = tinted(grey, labels)
    assert np.array_equal(shown[labels == 0], np.repeat(grey[labels == 0][:, None], 3, axis=1))
    for place, label in (((3, 4), 1), ((5, 6), 255)):
        own = np.array(list(bytes.fromhex(colour(label)[1:])))
        np.testing.assert_allclose(shown[place], grey[place] * (1 - OPACITY) + own * OPACITY, atol=0.51)


def picture(result: Result, volume: Volume) -> np.ndarray:
    with Image.open(io.BytesIO(draw_views(result, volume))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def result_with(volume: Volume, heads, prompts=None) -> Result:
    return Result(
        describe_series(volume),
        {"name": "toy", "version": "1", "sha256": "0" * 64},
        {"name": "onnxruntime", "device": "cpu", "precision": "fp32", "threads": 2},
        {"kept": 128, "total": 512},
        np.zeros(4, np.float32),
        ScopeAnswer(True, 0.9, "fine"),
        heads,
        {"read": 1.0, "total": 1.0},
        prompts or {},
    )


def count(pixels: np.ndarray, code: str) -> int:
    return int((pixels == list(bytes.fromhex(code[1:]))).all(axis=-1).sum())


def test_the_picture_shows_labels_boxes_and_their_key():
    volume, labels, box = patient()
    tissue = HeadAnswer("segmentation", label_map=labels, volumes_ml=labels.volumes_ml(), note="Weak on thick slices.")
    pixels = picture(result_with(volume, {"tissue": tissue, "spot": HeadAnswer("localisation", boxes=(box,))}), volume)
    assert count(pixels, BOX_COLOUR) > 300  # three outlines
    assert count(pixels, colour(1)) >= 100  # the key: a square of each colour
    assert count(pixels, colour(2)) >= 100
    plain = picture(result_with(volume, {"tissue": replace(tissue, label_map=None)}), volume)
    assert np.abs(pixels[56:456, :1264] - plain[56:456, :1264]).sum() > 10_000


def test_only_the_map_that_is_drawn_has_swatches(monkeypatch):
    """Of two segmentations the first is drawn; the other one's labels have the same numbers."""
    volume, labels, _ = patient()
    first = HeadAnswer("segmentation", label_map=labels, volumes_ml={"a": 1.0, "b": 2.0})
    second = HeadAnswer("segmentation", label_map=labels, volumes_ml={"c": 3.0, "d": 4.0, "e": 5.0})
    silent = HeadAnswer("segmentation", not_answered="out of scope")

    def seen(heads):
        said = []
        write = views_module._text
        with monkeypatch.context() as patch:
            patch.setattr(views_module, "_text", lambda *a, **k: (said.append(a[2]), write(*a, **k)))
            pixels = picture(result_with(volume, heads), volume)
        return [count(pixels[:, 1264:], code) for code in PALETTE], said

    alone, said_alone = seen({"tissue": first})
    both, said_both = seen({"silent": silent, "tissue": first, "lesions": second})
    assert alone[:3] == [11 * 11, 11 * 11, 0]
    assert both == alone
    assert "not drawn" not in said_alone
    assert {"a", "b", "c", "d", "e", "5 ml"} <= set(said_both)
    # The column is written twice, once to see how long it is.
    assert said_both.count("not drawn") == 2
    assert said_both.index("lesions") < said_both.index("not drawn") < said_both.index("c")


@pytest.mark.parametrize("reason", ["tensorrt: no NVIDIA driver", "onnxruntime-cuda: not installed; " * 40])
def test_why_another_engine_answered_is_a_line_below_the_picture(reason):
    volume, _, _ = patient()
    plain = result_with(volume, {})
    told = picture(replace(plain, engine={**plain.engine, "fallback": reason}), volume)
    silent = picture(plain, volume)
    added = told.shape[0] - silent.shape[0]
    assert 15 <= added <= 25  # one line
    line = (np.abs(told[-added - 16 :] - told[0, 0]).sum(axis=-1) > 0).any(axis=0)
    assert line.any()
    ends = np.nonzero(line)[0]
    assert ends[0] >= 14  # a letter may reach over its edge
    assert ends[-1] < told.shape[1] - 14
    assert (ends[-1] > 1500) == (len(reason) > 500)


def test_a_note_is_drawn():
    volume, _, _ = patient()
    answer = HeadAnswer("regression", value=3.0, unit="ml")
    silent, said = (picture(result_with(volume, {"x": a}), volume) for a in (answer, replace(answer, note="Weak.")))
    assert np.abs(silent - said).sum() > 0


@pytest.mark.parametrize("many", [1, 30])
def test_many_answers_make_a_taller_picture_and_none_is_cut(many):
    volume, _, _ = patient()
    answer = HeadAnswer("classification", label="a", probabilities={"a": 0.9, "b": 0.1}, note="A note of some words.")
    prompts = {
        f"prompt {i} " + "word " * 20: PromptAnswer(0.5, 0.5 if i % 2 else None, "no" if i == 4 else None)
        for i in range(many)
    }
    pixels = picture(result_with(volume, {f"head_{i}": answer for i in range(many)}, prompts), volume)
    lines = np.nonzero((np.abs(pixels[:, 1264:] - pixels[0, 0]).sum(axis=-1) > 0).any(axis=1))[0]
    assert pixels.shape[0] == pytest.approx(max(512, lines.max()), abs=60)
