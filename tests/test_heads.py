"""Every kind of head from a series to its answer, against what can be worked out by hand; and graphs that lie."""

import json
from dataclasses import replace
from importlib.resources import files
from itertools import permutations, product
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import decipher_rt
from decipher_rt.bundle import open_bundle
from decipher_rt.errors import BundleError, DecipherError, EngineError
from decipher_rt.manifest import Scope
from decipher_rt.session import Session, _against_header
from decipher_rt.verify import verify_bundle
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

GRID, PATCH = 32, 8
# The bright block in the patient, as ranges in mm along L, P, S: one patch, away from the middle.
BRIGHT_LPS = ((32, 64), (-32, 0), (0, 32))


def block_volume(order=(2, 1, 0), flips=(False, False, False), spacing=(4.0, 4.0, 4.0)) -> Volume:
    """The whole field of view of the grid at level 400, one block at 1000, stored in any axis order and direction."""
    sizes = [round(GRID * 4 / s) for s in spacing]
    positions = [(np.arange(n) + 0.5) * s - GRID * 2 for n, s in zip(sizes, spacing, strict=True)]
    inside = [(low < x) & (x < high) for x, (low, high) in zip(positions, BRIGHT_LPS, strict=True)]
    lps = np.full(sizes, 400, np.int16)
    lps[np.ix_(*inside)] = 1000
    lps[0] = 0  # the window's lower end
    affine = np.eye(4)
    stored = lps.transpose(order)
    for axis, (patient_axis, flip) in enumerate(zip(order, flips, strict=True)):
        direction = np.eye(3)[patient_axis] * spacing[patient_axis]
        affine[:3, axis] = -direction if flip else direction
        first = positions[patient_axis][-1 if flip else 0]
        affine[:3, 3] += np.eye(3)[patient_axis] * first
    for axis, flip in enumerate(flips):
        stored = np.flip(stored, axis) if flip else stored
    series = SeriesInfo("1.2.3", Path("block"), files=32, acquisition=Acquisition(modality="MR"))
    return Volume(np.ascontiguousarray(stored), affine, series)


@pytest.fixture(scope="module")
def session(answering_bundle):
    return decipher_rt.load(answering_bundle, threads=1)


@pytest.fixture(scope="module")
def result(session):
    return session.infer_volume(block_volume())


def validate(document) -> None:
    schema = json.loads((files("decipher_rt") / "schemas" / "result-1.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def test_the_golden_case_holds_every_kind_and_the_text(answering_bundle):
    for engine in ("onnxruntime", "openvino"):
        report = verify_bundle(open_bundle(answering_bundle), engine, "fp32", 1)
        assert report.passed, report
        assert [row.output for row in report.rows][-3:] == ["heads.brightest", "scope", "text"]


def test_volumes_are_those_of_the_block(result):
    """One of the 64 patches of 32 mm holds the block; all others are tissue."""
    answer = result.heads["tissue"]
    assert list(answer.volumes_ml) == ["tissue", "bright"]
    assert answer.volumes_ml["bright"] == pytest.approx(32**3 / 1000)
    assert answer.volumes_ml["tissue"] == pytest.approx(63 * 32**3 / 1000)


def test_json_follows_the_schema_and_keeps_the_map_out(result):
    document = result.to_json()
    validate(document)
    assert document["heads"]["tissue"] == {
        "kind": "segmentation",
        "labels": [
            {"value": 1, "label": "tissue", "volume_ml": 2064.384},
            {"value": 2, "label": "bright", "volume_ml": 32.768},
        ],
        "note": "Whole patches only.",
    }
    assert "note" not in document["heads"]["mean_percent"]


@pytest.mark.parametrize("order", list(permutations((0, 1, 2))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_the_box_is_where_the_block_is_however_it_is_stored(session, order, flips):
    """Centre and size in LPS mm from the block's own definition, in all 48 ways to store it."""
    (box,) = session.infer_volume(block_volume(order, flips)).heads["brightest"].boxes
    assert box.center_lps_mm == pytest.approx([sum(ends) / 2 for ends in BRIGHT_LPS], abs=1e-6)
    assert box.size_mm == pytest.approx((32, 32, 32))
    assert np.abs(np.array(box.axes_lps)) == pytest.approx(np.fliplr(np.eye(3)))
    signs = np.array(list(product((-0.5, 0.5), repeat=3)))
    corners = np.array(box.center_lps_mm) + signs * box.size_mm @ np.array(box.axes_lps)
    assert corners.min(axis=0) == pytest.approx([low for low, _ in BRIGHT_LPS], abs=1e-6)
    assert corners.max(axis=0) == pytest.approx([high for _, high in BRIGHT_LPS], abs=1e-6)


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 1, 2)])
@pytest.mark.parametrize(
    ("axis", "said"), [(2, "from feet to head"), (1, "from back to front"), (0, "from left to right")]
)
def test_what_the_grid_cuts_off_is_told(session, order, axis, said):
    volume = block_volume(order)
    stretched = volume.affine_lps_mm.copy()
    stretched[:3, order.index(axis)] *= 1.5  # 192 mm along this axis of the patient
    told = session.infer_volume(replace(volume, affine_lps_mm=stretched)).series["warnings"]
    assert [one.partition(" of the ")[2] for one in told] == [
        f"tissue lies beyond the 128 mm that the model sees {said}"
    ]


def test_an_oblique_box_turns_with_the_acquisition(session):
    """A rotation of the patient's axes by 20 degrees moves centre and axes of the box by the same rotation."""
    turn = np.radians(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    straight = block_volume()
    (before,) = session.infer_volume(straight).heads["brightest"].boxes
    turned = replace(straight, affine_lps_mm=rotation @ straight.affine_lps_mm)
    (after,) = session.infer_volume(turned).heads["brightest"].boxes
    assert after.center_lps_mm == pytest.approx(rotation[:3, :3] @ before.center_lps_mm)
    assert np.array(after.axes_lps) == pytest.approx(np.array(before.axes_lps) @ rotation[:3, :3].T)


def test_a_note_goes_with_every_answer_also_where_there_is_none(session, result):
    assert result.heads["brightness"].note == "Toy, knows nothing."
    volume = block_volume()
    ct = replace(volume, series=replace(volume.series, acquisition=Acquisition(modality="CT")))
    refused = session.infer_volume(ct)
    assert {answer.not_answered is not None for answer in refused.heads.values()} == {True}
    assert refused.heads["tissue"].note == "Whole patches only."
    assert refused.heads["tissue"].label_map is None
    validate(refused.to_json())


@pytest.mark.parametrize(
    ("part", "said"), [("KNEE", "body part KNEE, made for HEAD, BRAIN"), ("brain", ""), (None, "")]
)
def test_a_body_part_that_the_model_was_not_made_for_is_out_of_scope(session, part, said):
    scope = Scope("scope.onnx", "toy", 0.0, body_parts=("HEAD", "BRAIN"))
    assert _against_header(Acquisition(modality="MR", body_part=part), scope) == said
    assert not _against_header(Acquisition(body_part=part), replace(scope, body_parts=()))


@pytest.mark.parametrize("above", [0.0, 1e-3])
def test_a_score_below_the_threshold_is_out_of_scope(answering_bundle, tmp_path, rewrite_bundle, result, above):
    threshold = result.scope.score + above
    bundle = rewrite_bundle(answering_bundle, tmp_path, change=lambda m: m["scope"].update(threshold=threshold))
    judged = decipher_rt.load(bundle, threads=1).infer_volume(block_volume())
    assert judged.scope.inside == (above == 0)
    assert f"is {'below' if above else 'at least'} the threshold" in judged.scope.reason
    assert {answer.not_answered is not None for answer in judged.heads.values()} == {above > 0}


def constant_graph(output: str, values: np.ndarray, takes: str = "embedding", free: int = 2) -> bytes:
    """A graph that takes a feature and gives the same array whatever it is."""
    element = helper.np_dtype_to_tensor_dtype(values.dtype)
    shape = ["B", "K", 4] if takes == "patch" else ["B", 4]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMin", [takes], ["least"], keepdims=0),
            helper.make_node("Mul", ["least", "nothing"], ["zero"]),
            helper.make_node("Cast", ["zero"], ["cast"], to=element),
            helper.make_node("Cast", ["constant"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "zero"], ["sum"]),
            helper.make_node("Cast", ["sum"], [output], to=element),
        ],
        "constant",
        [helper.make_tensor_value_info(takes, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, element, None)],
        [numpy_helper.from_array(values, "constant"), numpy_helper.from_array(np.float32(0), "nothing")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def lying(bundle: Path, folder: Path, rewrite_bundle, head: str, output: str, values: np.ndarray) -> Session:
    changed = rewrite_bundle(bundle, folder, {f"heads/{head}.onnx": constant_graph(output, values)})
    return Session(open_bundle(changed), threads=1)


BOX = [0.9, 15.5, 15.5, 15.5, 8, 8, 8]


@pytest.mark.parametrize(
    ("head", "output", "values"),
    [
        ("brightest", "boxes", np.array([[[0.9, np.nan, 1, 1, 8, 8, 8]]], np.float32)),
        ("brightest", "boxes", np.array([[BOX, [np.nan] * 7]], np.float32)),
        ("brightest", "boxes", np.array([[[0.9, 1, 1, 1, np.inf, 8, 8]]], np.float32)),
        ("brightest", "boxes", np.array([[[0.9, 1, 1, 1, -8, 8, 8]]], np.float32)),
        ("brightest", "boxes", np.array([[[7.0, 1, 1, 1, 8, 8, 8]]], np.float32)),
        ("brightness", "probabilities", np.array([[np.nan, 0.5]], np.float32)),
        ("brightness", "probabilities", np.array([[3.2, -1.1]], np.float32)),
        ("mean_percent", "value", np.array([[np.inf]], np.float32)),
    ],
)
def test_an_answer_that_is_none_is_withheld_and_the_others_stand(
    answering_bundle, tmp_path, rewrite_bundle, head, output, values
):
    found = lying(answering_bundle, tmp_path, rewrite_bundle, head, output, values).infer_volume(block_volume())
    assert found.heads[head].not_answered
    assert not found.heads[head].boxes
    assert all(answer.not_answered is None for name, answer in found.heads.items() if name != head)
    validate(found.to_json())
    assert "NaN" not in json.dumps(found.to_json())


def test_what_rounding_takes_beyond_0_or_1_is_a_probability(answering_bundle, tmp_path, rewrite_bundle):
    values = np.array([[1.000002, -0.000002]], np.float32)
    lied = lying(answering_bundle, tmp_path, rewrite_bundle, "brightness", "probabilities", values)
    found = lied.infer_volume(block_volume())
    assert list(found.heads["brightness"].probabilities.values()) == [1, 0]
    validate(found.to_json())


@pytest.mark.parametrize(
    ("head", "output", "values", "said"),
    [
        (
            "tissue",
            "labels_map",
            np.zeros((1, 32, 32, 32), np.uint8),
            r"shape \(1, 32, 32, 32\).*expected \(1, 16, 16, 16\)",
        ),
        ("tissue", "labels_map", np.zeros((16, 16, 16), np.uint8), "label map of shape"),
        ("tissue", "labels_map", np.zeros((1, 16, 16, 16), np.float32), "float32, expected"),
        ("tissue", "labels_map", np.full((1, 16, 16, 16), 3, np.uint8), "the label 3, the manifest names 3"),
        ("tissue", "boxes", np.zeros((1, 1, 7), np.float32), "gives no output labels_map"),
        ("brightest", "boxes", np.zeros((1, 1, 7), np.uint8), "values of type uint8, expected float32"),
        ("brightness", "probabilities", np.full((1, 2), 0.5), "values of type float64, expected float32"),
        ("brightest", "boxes", np.zeros((1, 7), np.float32), r"boxes of shape \(1, 7\)"),
        ("brightest", "boxes", np.zeros((1, 1, 6), np.float32), r"expected \(1, M, 7\)"),
        ("brightness", "probabilities", np.full((1, 3), 0.3, np.float32), r"of shape \(1, 3\), expected \(1, 2\)"),
        ("mean_percent", "value", np.zeros((1, 2), np.float32), r"expected \(1, 1\)"),
    ],
)
def test_a_graph_that_breaks_its_manifest_is_named_in_one_line(
    answering_bundle, tmp_path, rewrite_bundle, head, output, values, said
):
    session = lying(answering_bundle, tmp_path, rewrite_bundle, head, output, values)
    with pytest.raises(BundleError, match=said) as caught:
        session.infer_volume(block_volume())
    assert "\n" not in str(caught.value)
    assert head in str(caught.value)


def test_a_head_that_wants_what_nothing_gives(answering_bundle, tmp_path, rewrite_bundle):
    graph = onnx.load_from_string(constant_graph("value", np.zeros((1, 1), np.float32)))
    graph.graph.input[0].name = graph.graph.node[0].input[0] = "secrets"
    changed = rewrite_bundle(answering_bundle, tmp_path, {"heads/mean_percent.onnx": graph.SerializeToString()})
    with pytest.raises(BundleError, match="takes secrets"):
        Session(open_bundle(changed), threads=1).infer_volume(block_volume())


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (
            TensorProto.FLOAT,
            [1, 1, 5, 5, 5],
            r"mean_percent.onnx: input volume is float32 \(1, 1, .*, expected float32 ",
        ),
        (TensorProto.DOUBLE, [1, 1, "D", "H", "W"], r"mean_percent.onnx: input volume is a tensor\(double\)"),
    ],
)
def test_a_head_that_wants_another_grid_than_there_is(answering_bundle, tmp_path, rewrite_bundle, kind, shape, said):
    graph = onnx.load_from_string(constant_graph("value", np.zeros((1, 1), np.float32)))
    graph.graph.input[0].CopyFrom(helper.make_tensor_value_info("volume", kind, shape))
    graph.graph.node[0].input[0] = "as float"
    graph.graph.node.insert(0, helper.make_node("Cast", ["volume"], ["as float"], to=TensorProto.FLOAT))
    changed = rewrite_bundle(answering_bundle, tmp_path, {"heads/mean_percent.onnx": graph.SerializeToString()})
    with pytest.raises(EngineError, match=said):
        Session(open_bundle(changed), threads=1).infer_volume(block_volume())


def test_boxes_under_the_threshold_are_left_out_and_the_best_is_first(answering_bundle, tmp_path, rewrite_bundle):
    rows = [[0.6, *BOX[1:]], [0.49, *BOX[1:]], [0.8, *BOX[1:]]]
    session = lying(answering_bundle, tmp_path, rewrite_bundle, "brightest", "boxes", np.array([rows], np.float32))
    assert [round(box.score, 3) for box in session.infer_volume(block_volume()).heads["brightest"].boxes] == [0.8, 0.6]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["heads"][2].update(stride=5),
        lambda m: m["heads"][2].update(labels=["background"]),
        lambda m: m["heads"][2].update(name="../../etc/passwd"),
        lambda m: m["heads"][3].update(threshold=2),
        lambda m: m["text"].update(max_tokens=0),
        lambda m: m["text"].update(logit_scale=float("nan")),
        lambda m: m["text"].update(file="none.onnx"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(answering_bundle, tmp_path, rewrite_bundle, change):
    with pytest.raises(DecipherError) as caught:
        open_bundle(rewrite_bundle(answering_bundle, tmp_path, change=change))
    assert "\n" not in str(caught.value)
