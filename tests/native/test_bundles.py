"""Whatever Python refuses to open, C refuses too, and the other way round."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from decipher_rt.bundle import open_bundle
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.session import Session
from decipher_rt.volume import SeriesInfo, Volume

BUNDLE_ERROR = 2
WORKER = 1

Change = Callable[[dict[str, Any]], object]


def nested(depth: int) -> list[Any]:
    """Return lists in one another."""
    lists: list[Any] = []
    for _ in range(depth - 1):
        lists = [lists]
    return lists


# What they name need only be there: neither is run by C.
SEGMENTATION = {"kind": "segmentation", "name": "tissue.v2_a-b", "labels": ["background", "grey"], "stride": 2}
TEXT = {"file": "scope.onnx", "tokenizer": "heads/sequence.onnx", "max_tokens": 64, "logit_scale": 14.3}

BAD_MANIFESTS: dict[str, Change] = {
    "schema": lambda m: m.update(schema="decipher-rt/bundle/2"),
    "no schema": lambda m: m.pop("schema"),
    "unknown key": lambda m: m.update(extra=1),
    "no name": lambda m: m.pop("name"),
    "name is a number": lambda m: m.update(name=3),
    "heads is an object": lambda m: m.update(heads={}),
    "unknown key of a head": lambda m: m["heads"][0].update(extra=1),
    "head of an unknown kind": lambda m: m["heads"][0].update(kind="oracle"),
    "two heads of a name": lambda m: m["heads"].append({**m["heads"][0], "file": "scope.onnx"}),
    "label is null": lambda m: m["heads"][0]["labels"].append(None),
    "two heads of a kind in a file": lambda m: m["heads"].append({**m["heads"][0], "name": "another"}),
    "head outside": lambda m: m["heads"][0].update(file="../x.onnx"),
    "head absent": lambda m: m["heads"][0].update(file="heads/none.onnx"),
    "absolute": lambda m: m["engines"][0].update(file="/etc/passwd"),
    "precision": lambda m: m["engines"][0].update(precision="fp64"),
    "grid of two axes": lambda m: m["preprocessing"].update(grid_shape=[96, 96]),
    "grid of floats": lambda m: m["preprocessing"].update(grid_shape=[96.0, 96, 96]),
    "grid of booleans": lambda m: m["preprocessing"].update(
        grid_shape=[True, 96, 96], patch_shape=[1, 12, 12], token_buckets=[64]
    ),
    "grid no multiple": lambda m: m["preprocessing"].update(grid_shape=[95, 96, 96]),
    "patch of nothing": lambda m: m["preprocessing"].update(patch_shape=[0, 12, 12]),
    "negative spacing": lambda m: m["preprocessing"].update(spacing_mm=[-1, 2, 2]),
    "spacing beyond every image": lambda m: m["preprocessing"].update(spacing_mm=[2e9, 2e9, 2e9]),
    "spacing of nothing": lambda m: m["preprocessing"].update(spacing_mm=[1e-30, 2, 2]),
    "spacing is text": lambda m: m["preprocessing"].update(spacing_mm=["1", 2, 2]),
    "metric of numerics is text": lambda m: m["numerics"][0].update(metrics={"tissue": "60"}),
    "buckets descend": lambda m: m["preprocessing"].update(token_buckets=[512, 128]),
    "buckets end early": lambda m: m["preprocessing"].update(token_buckets=[128]),
    "no buckets": lambda m: m["preprocessing"].update(token_buckets=[]),
    "percentiles exchanged": lambda m: m["preprocessing"].update(window_percentiles=[99, 1]),
    "percentiles beyond": lambda m: m["preprocessing"].update(window_percentiles=[1, 101]),
    "graph is a number": lambda m: m["preprocessing"].update(graphs={"cpu": 3}),
    "graph outside": lambda m: m["preprocessing"].update(graphs={"cpu": "a/../../b"}),
    "encoder is a list": lambda m: m.update(encoder=[]),
    "width is text": lambda m: m["encoder"].update(width="192"),
    "encoder without parameters": lambda m: m["encoder"].pop("parameters"),
    "an embedding of no size": lambda m: m["encoder"].update(embedding_size=-5),
    "parameters of 400 digits": lambda m: m["encoder"].update(parameters=10**400),
    "parameters beyond reason": lambda m: m["encoder"].update(parameters=10**16),
    "tissue in percent": lambda m: m["preprocessing"].update(min_tissue=5),
    "a tissue level below nothing": lambda m: m["preprocessing"].update(tissue_level=-0.1),
    "two labels of a name": lambda m: m["heads"][0].update(kind="classification", labels=["no", "yes", "no"]),
    "two labels of a name in a map": lambda m: m["heads"][0].update(SEGMENTATION, labels=["a", "b", "b"]),
    "a negative tolerance": lambda m: m["numerics"][0].update(tolerance=-1),
    "metrics is a list": lambda m: m.update(metrics=[]),
    "metrics too deep": lambda m: m.update(metrics={"a": nested(63)}),
    "numerics without tolerance": lambda m: m["numerics"][0].pop("tolerance"),
    "scope without method": lambda m: m["scope"].pop("method"),
    "scope threshold is text": lambda m: m["scope"].update(threshold="0"),
    "scope modalities": lambda m: m["scope"].update(modalities="MR"),
    "scope body parts": lambda m: m["scope"].update(body_parts=[7]),
    "classification without labels": lambda m: m["heads"][0].update(kind="classification", labels=[]),
    "a threshold that is no number": lambda m: m["scope"].update(threshold=math.nan),
    "a threshold without end": lambda m: m["scope"].update(threshold=math.inf),
    "a number of 400 digits": lambda m: m["scope"].update(threshold=10**400),
    "a grid that no memory holds": lambda m: m["preprocessing"].update(
        grid_shape=[1 << 40] * 3, patch_shape=[1 << 40] * 3
    ),
    "segmentation of one label": lambda m: m["heads"][0].update(SEGMENTATION, labels=["background"]),
    "segmentation of 257 labels": lambda m: m["heads"][0].update(SEGMENTATION, labels=[str(i) for i in range(257)]),
    "segmentation of no stride": lambda m: m["heads"][0].update(SEGMENTATION, stride=0),
    "stride that does not divide": lambda m: m["heads"][0].update(SEGMENTATION, stride=7),
    "stride is a float": lambda m: m["heads"][0].update(SEGMENTATION, stride=1.0),
    "stride is a boolean": lambda m: m["heads"][0].update(SEGMENTATION, stride=True),
    "segmentation that names a folder": lambda m: m["heads"][0].update(SEGMENTATION, name="../tissue"),
    "segmentation without a name": lambda m: m["heads"][0].update(SEGMENTATION, name=""),
    "segmentation of a long name": lambda m: m["heads"][0].update(SEGMENTATION, name="t" * 65),
    "threshold above 1": lambda m: m["heads"][0].update(kind="localisation", threshold=1.5),
    "threshold below 0": lambda m: m["heads"][0].update(kind="localisation", threshold=-0.1),
    "threshold is text": lambda m: m["heads"][0].update(kind="localisation", threshold="0.5"),
    "text is a list": lambda m: m.update(text=[]),
    "text without tokenizer": lambda m: m.update(text={k: v for k, v in TEXT.items() if k != "tokenizer"}),
    "text with an unknown key": lambda m: m.update(text={**TEXT, "extra": 1}),
    "text of no tokens": lambda m: m.update(text={**TEXT, "max_tokens": 0}),
    "text without a scale": lambda m: m.update(text={**TEXT, "logit_scale": 0}),
    "text without tolerance": lambda m: m.update(text={**TEXT, "tolerance": 0}),
    "text outside": lambda m: m.update(text={**TEXT, "file": "../text.onnx"}),
    "tokenizer absent": lambda m: m.update(text={**TEXT, "tokenizer": "none.json"}),
}

GOOD_MANIFESTS: dict[str, Change] = {
    "as it is": lambda m: None,
    "no heads": lambda m: m.update(heads=[]),
    "no scope": lambda m: m.update(scope=None),
    "spacing of integers": lambda m: m["preprocessing"].update(spacing_mm=[2, 3, 4]),
    "deep metrics": lambda m: m.update(metrics={"a": nested(62)}),
    "any metrics": lambda m: m.update(metrics={"a": [1, {"b": None}]}),
    "other names": lambda m: m.update(name="ü", intended_use=""),
    "text": lambda m: m.update(text=TEXT),
    "text with a tolerance": lambda m: m.update(text={**TEXT, "tolerance": 0.05}),
    "no text": lambda m: m.update(text=None),
}


def copy(bundle: Path, folder: Path, change: Change | None = None) -> Path:
    target = folder / "bundle"
    shutil.copytree(bundle, target)
    if change is not None:
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        change(manifest)
        rewrite(target, "manifest.json", json.dumps(manifest).encode())
    return target


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and its sum: the sums alone do not make a bundle good."""
    (bundle / name).write_bytes(content)
    lines = (bundle / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line[66:] != name]
    sums = "\n".join([*kept, f"{hashlib.sha256(content).hexdigest()}  {name}"]) + "\n"
    (bundle / "SHA256SUMS").write_text(sums, encoding="utf-8")


def both_refuse(sdk: Any, bundle: Path) -> tuple[str, str]:
    with pytest.raises(BundleError) as python:
        open_bundle(bundle)
    with pytest.raises(Exception, match="bundle") as native:
        sdk.open(bundle)
    assert native.value.status == BUNDLE_ERROR
    assert "\n" not in str(native.value)
    return str(python.value), str(native.value)


def test_a_manifest_of_nothing_but_brackets_is_refused(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    target = copy(native_bundle, tmp_path)
    rewrite(target, "manifest.json", b"[" * 200_000 + b"]" * 200_000)
    both_refuse(sdk, target)


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_bad_manifest(name: str, sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    both_refuse(sdk, copy(native_bundle, tmp_path, BAD_MANIFESTS[name]))


@pytest.mark.parametrize("name", GOOD_MANIFESTS)
def test_good_manifest(name: str, sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path, GOOD_MANIFESTS[name])
    manifest = open_bundle(bundle).manifest
    with sdk.open(bundle) as session:
        assert session.info().bundle_name.decode() == manifest.name
        assert session.info().bundle_sha256.decode() == open_bundle(bundle).sha256


def test_a_file_may_be_called_anything_that_is_one_line(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path)
    rewrite(bundle, "notes\v\f.txt", b"any")
    assert open_bundle(bundle).sums
    with sdk.open(bundle):
        pass


def test_heads_say_what_they_give(
    sdk: Any, answering_bundle: Path, tmp_path: Path, rewrite_bundle: Callable[..., Path]
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["scope"] = None
        tissue = next(head for head in manifest["heads"] if head["kind"] == "segmentation")
        tissue.update(name="tissue.v2_a-b", description="Weak.")

    bundle = rewrite_bundle(answering_bundle, tmp_path, change=change)
    named = {head.name: head for head in open_bundle(bundle).manifest.heads}
    with sdk.open(bundle) as session:
        heads = {head.name.decode(): head for head in session.heads()}
        assert heads.keys() == named.keys()
        tissue = heads["tissue.v2_a-b"]
        assert (tissue.kind, tissue.description) == (2, b"Weak.")
        volume = np.random.default_rng(0).integers(0, 1000, (30, 40, 50)).astype(np.int16)
        session.run(volume, np.diag([4.0, 4.0, 4.0, 1.0]))
        for name, head in named.items():
            labels = [session.label(name, i) for i in range(len(head.labels) + 1)]
            assert labels == [*head.labels, None]
            if head.kind == "localisation":
                assert heads[name].values == 0
                with pytest.raises(Exception, match="gives boxes: ask drt_head_boxes"):
                    session.head_values(name)
            else:
                assert len(session.head_values(name)) == heads[name].values == max(1, len(head.labels))
            if head.kind != "segmentation":
                with pytest.raises(Exception, match="gives no label map"):
                    session.head_map(name, volume.shape)


@pytest.mark.parametrize(
    ("head", "output"),
    [(SEGMENTATION, "labels_map"), ({"kind": "localisation", "threshold": 1, "labels": []}, "boxes")],
    ids=["segmentation", "localisation"],
)
def test_a_head_whose_graph_is_of_another_kind_is_refused(
    head: dict[str, Any], output: str, sdk: Any, native_bundle: Path, tmp_path: Path
) -> None:
    bundle = copy(native_bundle, tmp_path, lambda m: m["heads"][0].update(head))
    with pytest.raises(Exception, match=f"gives no output {output}"):
        sdk.open(bundle)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": 1', "[" * 100_000, '{"a": 1e999}', '{"a": "\\ud800"}']
)
def test_manifest_that_is_no_manifest(text: str, sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path)
    rewrite(bundle, "manifest.json", text.encode())
    both_refuse(sdk, bundle)


@pytest.mark.parametrize("change", ["mark", "half a pair"])
def test_manifest_that_is_no_text(change: str, sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path)
    content = (bundle / "manifest.json").read_bytes()
    if change == "mark":
        content = b"\xef\xbb\xbf" + content
    else:
        content = content.replace(b'"licence": "', b'"licence": "\\ud800')
    assert content != (bundle / "manifest.json").read_bytes()
    rewrite(bundle, "manifest.json", content)
    both_refuse(sdk, bundle)


def test_damage(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    damages: dict[str, Callable[[Path], object]] = {
        "flipped": lambda b: (b / "encoder.onnx").write_bytes(b"x" + (b / "encoder.onnx").read_bytes()[1:]),
        "cut": lambda b: (b / "encoder.onnx").write_bytes((b / "encoder.onnx").read_bytes()[:-1]),
        "absent": lambda b: (b / "encoder.onnx").unlink(),
        "unlisted": lambda b: (b / "extra.txt").write_text("x"),
        "no sums": lambda b: (b / "SHA256SUMS").unlink(),
        "sums of something": lambda b: (b / "SHA256SUMS").write_text("hello\n"),
        "sums not text": lambda b: (b / "SHA256SUMS").write_bytes(b"\xff\xfe"),
        "link": lambda b: (b / "link").symlink_to("/etc/passwd"),
        "folder link": lambda b: (b / "link").symlink_to("/etc"),
    }
    for name, damage in damages.items():
        bundle = copy(native_bundle, tmp_path / name.replace(" ", "-"))
        damage(bundle)
        both_refuse(sdk, bundle)
    both_refuse(sdk, tmp_path / "none")


def test_an_encoder_of_another_precision_is_checked_by_who_runs_it(
    sdk: Any, native_bundle: Path, tmp_path: Path
) -> None:
    bundle = copy(native_bundle, tmp_path)
    (bundle / "encoder.fp16.onnx").write_bytes(b"altered")
    opened = open_bundle(bundle, only_used=True)
    assert opened.file("encoder.onnx").is_file()
    with sdk.open(bundle, precision="fp32"):
        pass
    said = r"encoder\.fp16\.onnx differs from its sum"
    with pytest.raises(BundleError, match=said):
        opened.file("encoder.fp16.onnx")
    with pytest.raises(Exception, match=said) as native:
        sdk.open(bundle, precision="fp16")
    assert native.value.status == BUNDLE_ERROR


@pytest.mark.parametrize("content", [b"", b"not a graph", b"<?xml version='1.0'?><net/>", b"\x00" * 1000])
def test_encoder_that_is_no_encoder(content: bytes, sdk: Any, native_bundle: Path, tmp_path: Path, capfd: Any) -> None:
    bundle = copy(native_bundle, tmp_path)
    rewrite(bundle, "encoder.onnx", content)
    with pytest.raises(Exception, match=r"encoder\.onnx"):
        sdk.open(bundle)
    assert capfd.readouterr() == ("", "")


def with_infinite(bundle: Path, file: str, output: str) -> None:
    """Let a graph give what a division by zero would."""
    with_added(bundle, file, output, np.inf)


def with_added(bundle: Path, file: str, output: str, number: float) -> None:
    """Add a number to an output of a graph."""
    model = onnx.load_from_string((bundle / file).read_bytes())
    for node in model.graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), "added"))
    model.graph.node.append(helper.make_node("Add", ["before", "added"], [output]))
    rewrite(bundle, file, model.SerializeToString())


def test_an_embedding_that_is_not_finite_is_an_error_in_both(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path)
    with_infinite(bundle, "encoder.onnx", "embedding")
    volume, affine = np.random.default_rng(0).integers(0, 1000, (30, 40, 50)).astype(np.int16), np.diag([4.0, 4, 4, 1])
    with pytest.raises(EngineError, match="the encoder gave an embedding that is not finite; use another precision"):
        Session(open_bundle(bundle), threads=1).infer_volume(Volume(volume, affine, SeriesInfo("1.2", Path())))
    with (
        sdk.open(bundle) as session,
        pytest.raises(Exception, match="the encoder gave an embedding that is not finite; use another precision"),
    ):
        session.run(volume, affine)


def test_an_embedding_that_is_no_unit_vector_is_an_error_in_both(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path)
    with_added(bundle, "encoder.onnx", "embedding", 0.5)
    volume, affine = np.random.default_rng(0).integers(0, 1000, (30, 40, 50)).astype(np.int16), np.diag([4.0, 4, 4, 1])
    said = "the encoder gives an embedding that is no unit vector; export the bundle again"
    with pytest.raises(BundleError, match=said):
        Session(open_bundle(bundle), threads=1).infer_volume(Volume(volume, affine, SeriesInfo("1.2", Path())))
    with sdk.open(bundle) as session, pytest.raises(Exception, match=said):
        session.run(volume, affine)


def test_tokens_of_another_order_are_an_error_in_both(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    """They are as many: without heads that take them nobody else would see it."""
    bundle = copy(native_bundle, tmp_path, lambda m: m.update(heads=[], scope=None))
    model = onnx.load_from_string((bundle / "encoder.onnx").read_bytes())
    for node in model.graph.node:
        node.output[:] = ["in order" if name == "patch" else name for name in node.output]
        node.input[:] = ["in order" if name == "patch" else name for name in node.input]
    model.graph.node.append(helper.make_node("Transpose", ["in order"], ["patch"], perm=[0, 2, 1]))
    (patch,) = (output for output in model.graph.output if output.name == "patch")
    patch.type.tensor_type.ClearField("shape")
    rewrite(bundle, "encoder.onnx", model.SerializeToString())
    volume, affine = np.random.default_rng(0).integers(0, 1000, (30, 40, 50)).astype(np.int16), np.diag([4.0, 4, 4, 1])
    said = r"the encoder gives patch of shape \(1, (\d+), (\d+)\), expected \(1, \2, \1\); export the bundle again"
    with pytest.raises(BundleError, match=said):
        Session(open_bundle(bundle), threads=1).infer_volume(Volume(volume, affine, SeriesInfo("1.2", Path())))
    with sdk.open(bundle) as session, pytest.raises(Exception, match=said):
        session.run(volume, affine)


def test_a_scope_that_is_not_finite_answers_nothing_in_both(sdk: Any, native_bundle: Path, tmp_path: Path) -> None:
    bundle = copy(native_bundle, tmp_path)
    with_infinite(bundle, "scope.onnx", "score")
    volume, affine = np.random.default_rng(0).integers(0, 1000, (30, 40, 50)).astype(np.int16), np.diag([4.0, 4, 4, 1])
    scope = (
        Session(open_bundle(bundle), threads=1).infer_volume(Volume(volume, affine, SeriesInfo("1.2", Path()))).scope
    )
    with sdk.open(bundle) as session:
        session.run(volume, affine)
        found = session.scope()
        assert (scope.inside, bool(found.inside)) == (False, False)
        assert found.reason.decode() == scope.reason
    assert "score is not finite" in scope.reason


def test_preprocessing_graph_that_is_no_graph(sdk: Any, native_bundle: Path, tmp_path: Path, capfd: Any) -> None:
    bundle = copy(native_bundle, tmp_path)
    graph = open_bundle(bundle).manifest.preprocessing.graphs["cpu"]
    rewrite(bundle, graph, b"\x01\x02\x03")
    with pytest.raises(Exception, match="damaged"):
        sdk.open(bundle)
    rewrite(bundle, graph, (native_bundle / graph).read_bytes().replace(b"Resize", b"Reside"))
    with pytest.raises(Exception, match="Reside, which preprocessing does not use"):
        sdk.open(bundle)
    assert capfd.readouterr() == ("", "")


def renamed_head(within: str) -> bytes:
    """A regression that begins with a Cast that changes nothing and ends with an Identity."""
    node, float32 = helper.make_node, TensorProto.FLOAT
    nodes = [
        node("Cast", ["embedding"], [within], to=float32),
        node("ReduceMean", [within, "axes"], [f"{within}.mean"], keepdims=1),
        node("Identity", [f"{within}.mean"], ["value"]),
    ]
    takes, gives = (
        helper.make_tensor_value_info(name, float32, ["B", n]) for name, n in (("embedding", "E"), ("value", 1))
    )
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = helper.make_graph(nodes, "head", [takes], [gives], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("within", ["a", "v", "zz", "Cast_0"])
def test_a_head_keeps_the_names_of_its_file(
    within: str, sdk: Any, answering_bundle: Path, tmp_path: Path, rewrite_bundle: Callable[..., Path]
) -> None:
    head = next(h for h in open_bundle(answering_bundle).manifest.heads if h.kind == "regression")
    bundle = rewrite_bundle(answering_bundle, tmp_path, {head.file: renamed_head(within)})
    for _ in range(2):  # compiled, and kept
        with sdk.open(bundle, heads=head.name.encode(), cache_folder=str(tmp_path).encode()) as session:
            assert [one.name.decode() for one in session.heads()] == [head.name]


@pytest.mark.parametrize(("values", "answered"), [((3.2, -1.1), None), ((1.000002, -0.000002), [1.0, 0.0])])
def test_what_is_no_probability_is_no_answer(
    values: tuple[float, float],
    answered: list[float] | None,
    sdk: Any,
    answering_bundle: Path,
    tmp_path: Path,
    rewrite_bundle: Callable[..., Path],
) -> None:
    """As in Python: logits, say, where a graph lacks its Softmax."""
    bundle = rewrite_bundle(answering_bundle, tmp_path, {"heads/brightness.onnx": constant_probabilities(values)})
    voxels = np.random.default_rng(0).integers(0, 2000, (32, 32, 32)).astype(np.int16)
    with sdk.open(bundle, heads=b"brightness") as session:
        session.run(voxels, np.diag([4.0, 4.0, 4.0, 1.0]), modality="MR")
        if answered is None:
            with pytest.raises(Exception, match="the head gave a probability outside 0 to 1"):
                session.head_values("brightness")
        else:
            assert session.head_values("brightness").tolist() == answered


def constant_probabilities(values: tuple[float, float]) -> bytes:
    node, float32 = helper.make_node, TensorProto.FLOAT
    nodes = [
        node("ReduceMean", ["embedding", "axes"], ["mean"], keepdims=1),
        node("Mul", ["mean", "zero"], ["nothing"]),
        node("Add", ["nothing", "values"], ["probabilities"]),
    ]
    takes, gives = (
        helper.make_tensor_value_info(name, float32, ["B", n]) for name, n in (("embedding", "E"), ("probabilities", 2))
    )
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
        numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        numpy_helper.from_array(np.array([values], np.float32), "values"),
    ]
    graph = helper.make_graph(nodes, "head", [takes], [gives], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_where_a_graph_finds_no_box_there_is_none(
    sdk: Any, answering_bundle: Path, tmp_path: Path, rewrite_bundle: Callable[..., Path]
) -> None:
    """The number of boxes is the graph's own, and what it gives beside them is nobody's business."""
    bundle = rewrite_bundle(answering_bundle, tmp_path, {"heads/brightest.onnx": no_boxes()})
    voxels, affine = np.random.default_rng(0).integers(0, 2000, (32, 32, 32)).astype(np.int16), np.diag([4.0, 4, 4, 1])
    with sdk.open(bundle, heads=b"brightest") as session:
        session.run(voxels, affine, modality="MR")
        assert session.head_boxes("brightest") == []
    opened = open_bundle(bundle).with_heads(["brightest"])
    answer = Session(opened, threads=1).infer_volume(Volume(voxels, affine, SeriesInfo("1.2", Path()))).heads
    assert answer["brightest"].to_json()["boxes"] == []


def no_boxes() -> bytes:
    """As many boxes as numbers of the embedding are above 10: none, by a shape that is known in the run alone."""
    node = helper.make_node
    nodes = [
        node("Greater", ["embedding", "ten"], ["above"]),
        node("NonZero", ["above"], ["places"]),
        node("Gather", ["places", "last"], ["rows"], axis=0),
        node("Gather", ["table", "rows"], ["boxes"], axis=1),
    ]
    takes = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", "E"])
    gives = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "M", 7]),
        helper.make_tensor_value_info("rows", TensorProto.INT64, ["M"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(10, np.float32), "ten"),
        numpy_helper.from_array(np.array(1, np.int64), "last"),
        numpy_helper.from_array(np.ones((1, 1024, 7), np.float32), "table"),
    ]
    graph = helper.make_graph(nodes, "head", [takes], gives, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
