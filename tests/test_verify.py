"""What counts as the same answer on the golden case."""

import dataclasses

import numpy as np
import pytest

from decipher_rt.bundle import open_bundle
from decipher_rt.verify import SCOPE, TEXT, VerifyReport, compare, read_case


@pytest.fixture(scope="module")
def golden():
    bundle = open_bundle()
    case = read_case(bundle)
    outputs = {
        name: array for name, array in case.items() if name in ("patch", "embedding") or name.startswith("heads.")
    }
    return bundle.manifest, case, outputs


def test_an_embedding_that_points_elsewhere_does_not_pass_by_a_wide_tolerance(golden):
    manifest, case, outputs = golden
    elsewhere = np.roll(outputs["embedding"], 7, axis=-1)
    cosine, rows = compare({"embedding": elsewhere}, case, manifest, 0.5)
    assert all(row.passed for row in rows)
    assert not VerifyReport("onnxruntime", "int8", "cpu", cosine, rows).passed
    cosine, rows = compare({"embedding": outputs["embedding"]}, case, manifest, 0.5)
    assert VerifyReport("onnxruntime", "int8", "cpu", cosine, rows).passed


def test_a_text_that_points_elsewhere_does_not_pass_by_a_wide_tolerance(golden):
    manifest, case, outputs = golden
    signs = np.sign(np.random.default_rng(0).normal(size=case[TEXT].shape))
    moved = (case[TEXT] + 0.9 * manifest.text.tolerance * signs).astype(np.float32)
    cosine, rows = compare({"embedding": outputs["embedding"], TEXT: moved}, case, manifest, 0.05)
    assert all(row.passed for row in rows)
    assert not VerifyReport("onnxruntime", "fp16", "cpu", cosine, rows).passed


@pytest.mark.parametrize("kind", ["regression", "segmentation", "scope"])
def test_what_is_answered_is_held_to_less_than_what_tokens_may_move(golden, kind):
    manifest, case, _ = golden
    head = next((head for head in manifest.heads if head.kind == kind), None)
    name = f"heads.{head.name}" if head else SCOPE
    other = case[name].copy()
    if kind == "regression":
        other *= 1.3
    elif kind == "segmentation":
        other[:, ::4] = np.where(other[:, ::4] == 0, 0, 5 - other[:, ::4])  # another label in each fourth plane
    else:
        other += 0.3 * np.sign(other - manifest.scope.threshold)  # surer than it is
    embedding = {"embedding": case["embedding"]}
    (row,) = (row for row in compare({name: other, **embedding}, case, manifest, 0.5)[1] if row.output == name)
    assert not row.passed
    assert 0.1 < row.error < 0.5
    (row,) = (row for row in compare({name: case[name], **embedding}, case, manifest, 0.5)[1] if row.output == name)
    assert row.passed


BOXES = np.array([[[0.9, 40, 40, 40, 8, 8, 8], [0.7, 20, 20, 20, 4, 4, 4], [0.011, 90, 5, 5, 9, 9, 9]]], np.float32)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda boxes: boxes[:, [0, 1, 2]], 0.0),
        (lambda boxes: boxes[:, [1, 0, 2]], 0.0),  # two that are about as likely change places
        (
            lambda boxes: np.concatenate([boxes[:, :2], [[[0.0109, 3, 70, 70, 2, 2, 2]]]], axis=1),
            0.0001,
        ),  # nobody is told
        (lambda boxes: boxes + np.array([0, 9.6, 0, 0, 0, 0, 0]), 0.1),
        (lambda boxes: boxes * np.array([0.5, 1, 1, 1, 1, 1, 1]), 0.45),
        (lambda boxes: boxes * np.nan, np.inf),
    ],
    ids=["same", "order", "below the threshold", "moved", "less likely", "not a number"],
)
def test_of_boxes_those_that_are_found_are_compared(golden, change, error):
    manifest = golden[0]
    head = next(head for head in manifest.heads if head.kind == "localisation")
    small = dataclasses.replace(manifest, heads=(dataclasses.replace(head, threshold=0.5),), scope=None, text=None)
    name, embedding = f"heads.{head.name}", np.ones((1, 1), np.float32)
    _, rows = compare(
        {name: change(BOXES).astype(np.float32), "embedding": embedding},
        {name: BOXES, "embedding": embedding},
        small,
        1e-3,
    )
    assert rows[0].error == pytest.approx(error, abs=1e-4)
