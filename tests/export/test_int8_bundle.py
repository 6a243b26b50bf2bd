"""Int8 in a bundle: which encoder a CPU gets, what export refuses, and when a session goes back to fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import decipher_rt.encoder as encoder_module
from decipher_rt.bundle import Bundle, open_bundle, write_bundle
from decipher_rt.engines import load_engine
from decipher_rt.engines.select import INT8_FULL_RANGE, INT8_PORTABLE, int8_targets, onnx_encoder
from decipher_rt.errors import EngineError
from decipher_rt.export import bundle as export_module
from decipher_rt.export.bundle import GoldenCase, export_bundle
from decipher_rt.export.evaluate import Judge, evaluate_encoders
from decipher_rt.export.known import KnownSeries
from decipher_rt.export.parts import parts_of
from decipher_rt.session import Session
from decipher_rt.train.data.protocol import SEQUENCES
from decipher_rt.train.decoders.contract import Known
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.weights import Weights
from decipher_rt.verify import ANSWER_TOLERANCE, verify_bundle
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

ENCODER = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 16), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 64),
)  # fmt: skip
VNNI = {"avx2", "avx512_vnni"}
LESION = ("absent", "present")


def series(count: int, seed: int) -> list[KnownSeries]:
    rng = np.random.default_rng(seed)
    known = []
    for i in range(count):
        volume = rng.normal(500, 300, (1, 1, *ENCODER.grid_shape)).astype(np.float32)
        tokens = np.sort(rng.choice(64, 24, replace=False)).astype(np.int64)[None]
        inputs = {"volume": volume, "window": np.array([[0, 1000]], np.float32), "tokens": tokens}
        known.append(labelled(KnownSeries(inputs, heads=("sequence", "lesion")), SEQUENCES[i % 5], LESION[i % 2]))
    return known


def labelled(series: KnownSeries, sequence: str, lesion: str) -> KnownSeries:
    known = Known({"sequence": sequence, "lesion": lesion}, boxes=None, kind="head", tissue=False)
    return dataclasses.replace(series, known=known)


@pytest.fixture(scope="module")
def weights(untrained: Callable[..., Weights]) -> Weights:
    made = untrained(ENCODER)
    with torch.no_grad():  # as if calibrated: nothing lies on an edge
        made.model.scope.distance_edge.copy_(torch.tensor([2.0, 0.5]))
        made.model.scope.logit_edge.copy_(torch.tensor([-9.0, 1.0]))
    return made


def golden() -> GoldenCase:
    inputs = series(1, 1)[0].inputs
    return GoldenCase(inputs["volume"][0, 0].astype(np.int16), inputs["window"][0], inputs["tokens"][0])


@pytest.fixture(scope="module")
def exported(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    judge = Judge(lambda: iter(series(20, 2)), max_drop=100.0)
    calibration = [known.inputs for known in series(3, 3)]
    export_bundle(weights, golden(), folder, fp16=True, int8=calibration, judge=judge)
    return open_bundle(folder)


@pytest.mark.parametrize(
    ("features", "target"),
    [
        ({"avx2"}, INT8_PORTABLE),
        (VNNI, INT8_FULL_RANGE),
        ({"avx2", "avx_vnni"}, INT8_FULL_RANGE),
        ({"asimd"}, INT8_PORTABLE),
        ({"asimd", "asimddp"}, INT8_FULL_RANGE),
    ],
)
def test_the_cpu_decides_between_the_two_forms_of_int8(exported: Bundle, features: set[str], target: str) -> None:
    entry = onnx_encoder(exported.manifest, "int8", features)
    assert (entry.target, entry.precision) == (target, "int8")
    assert (INT8_FULL_RANGE in int8_targets(features)) == (target == INT8_FULL_RANGE)
    assert onnx_encoder(exported.manifest, "fp32", features).target == "onnx"


def test_every_encoder_has_its_figures_in_the_manifest(exported: Bundle) -> None:
    rows = {(row.target, row.precision): row for row in exported.manifest.numerics}
    assert set(rows) == {("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("onnx-vnni", "int8")}
    for row in rows.values():
        assert set(row.metrics) == {"sequence", "lesion"}
        assert 0.99 < row.embedding_cosine <= 1
        assert row.patch_cosine is not None
        assert row.patch_cosine > 0.95
    assert rows["onnx", "int8"].patch_max_error > rows["onnx", "fp32"].patch_max_error


def test_verify_uses_the_tolerance_of_the_encoder_that_ran(exported: Bundle) -> None:
    report = verify_bundle(exported, "onnxruntime", "int8")
    assert report.passed
    allowed = {row.output.split(".")[0]: row.tolerance for row in report.rows}
    assert allowed == {"patch": 0.5, "embedding": 0.5, "heads": ANSWER_TOLERANCE, "scope": ANSWER_TOLERANCE}


def volume() -> Volume:
    rng = np.random.default_rng(0)
    info = SeriesInfo("1.2.3", Path("memory"), files=1, acquisition=Acquisition(modality="MR"))
    affine = np.array([[0, 0, 15, -120], [0, 15, 0, -120], [15, 0, 0, -120], [0, 0, 0, 1.0]])
    return Volume(rng.integers(0, 1000, (16, 16, 16)).astype(np.int16), affine, info)


def test_a_session_runs_int8_and_says_which_file(exported: Bundle) -> None:
    engine = Session(exported, precision="int8").infer_volume(volume()).to_json()["engine"]
    assert engine["precision"] == "int8"
    assert "fallback" not in engine
    used = {name for name, digest in exported.sums.items() if digest == engine["sha256"]}
    assert used <= {"encoder.int8.onnx", "encoder.int8-vnni.onnx"}
    assert len(used) == 1


def with_broken_int8(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle with int8 weights as saturation would leave them: some columns at half of what they were."""
    files = {name: bundle.path / name for name in bundle.sums if name != "manifest.json"}
    for name in ("encoder.int8.onnx", "encoder.int8-vnni.onnx"):
        model = onnx.load(files[name])
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.int8 and array.ndim == 2:
                broken = array.copy()
                broken[:, ::2] //= 2
                tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))
        files[name] = model.SerializeToString()
    write_bundle(folder, bundle.manifest, files)
    return open_bundle(folder)


def test_a_session_goes_back_to_fp32_where_the_golden_case_fails_and_says_why(exported: Bundle, tmp_path: Path) -> None:
    broken = with_broken_int8(exported, tmp_path / "broken")
    result = Session(broken, precision="int8").infer_volume(volume())
    engine = result.to_json()["engine"]
    assert engine["precision"] == "fp32"
    assert engine["fallback"].startswith("int8 was asked for: on the golden case")
    assert engine["sha256"] == broken.sums["encoder.onnx"]
    exact = Session(exported, precision="fp32").infer_volume(volume())
    assert np.array_equal(result.embedding, exact.embedding)


def test_without_a_fault_there_is_no_reason_to_load_fp32(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    original = encoder_module.load_engine
    monkeypatch.setattr(
        encoder_module,
        "load_engine",
        lambda name, graph, **rest: (loaded.append(graph.name), original(name, graph, **rest))[1],
    )
    Session(exported, precision="int8")
    assert len(loaded) == 1
    assert loaded[0].startswith("encoder.int8")


class Answering:
    """An encoder that gives each series a chosen embedding."""

    name, device, precision, threads, inputs = "fake", "cpu", "int8", 1, ("volume", "window", "tokens")

    patch = np.ones((1, 24, 48), np.float32)

    def __init__(self, embeddings: np.ndarray) -> None:
        self._embeddings = iter(embeddings)

    def run(self, _inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"embedding": next(self._embeddings)[None], "patch": self.patch}


def heads(bundle: Bundle) -> list:
    return [
        (head, load_engine("onnxruntime", bundle.file(head.file), precision="fp32")) for head in bundle.manifest.heads
    ]


def test_metrics_are_accuracy_and_area_under_the_curve(exported: Bundle, weights: Weights) -> None:
    """Against answers counted by hand: what the heads say of given embeddings, and truths chosen around that."""
    rng = np.random.default_rng(4)
    embeddings = rng.normal(size=(10, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    (_, engine), _ = heads(exported)
    given = [{"embedding": embedding[None], "patch": Answering.patch} for embedding in embeddings]
    said = [int(engine.run(one)["probabilities"].argmax()) for one in given]
    assert len(set(said)) > 1
    truth = [SEQUENCES[(answer + (i < 3)) % 5] for i, answer in enumerate(said)]  # three of ten are wrong
    known = [
        labelled(item, label, LESION[i % 2]) for i, (item, label) in enumerate(zip(series(10, 0), truth, strict=True))
    ]
    parts = parts_of(weights).heads
    reference, others = evaluate_encoders(Answering(embeddings), [Answering(-embeddings)], parts, iter(known))
    assert reference.metrics["sequence"] == pytest.approx(70.0)
    assert reference.metrics["lesion"] == pytest.approx(50.0)  # the same tokens for all: no ranking
    assert reference.embedding_cosine == pytest.approx(1.0)
    assert others[0].embedding_cosine == pytest.approx(-1.0)


def as_fp32_answers(bundle: Bundle, known: list[KnownSeries]) -> list[KnownSeries]:
    """The same series with the fp32 answers as truth (lesion: the upper half), so that fp32 scores 100 %."""
    encoder = load_engine("onnxruntime", bundle.file("encoder.onnx"), precision="fp32")
    (_, sequence), (_, lesion) = heads(bundle)
    encoded = [encoder.run(item.inputs) for item in known]
    said = [int(sequence.run(e)["probabilities"].argmax()) for e in encoded]
    present = np.array([lesion.run({"patch": e["patch"]})["probabilities"][0, 1] for e in encoded])
    upper = present > np.median(present)
    return [labelled(item, SEQUENCES[said[i]], LESION[int(upper[i])]) for i, item in enumerate(known)]


DAMAGE = {
    "patch": (-1.0, r"lesion falls from 100.00 to \d+\.\d\d % on 20 series \(allowed 0.5 points\)"),
    "embedding": (-1.0, r"cosine -0\.99\d\d to fp32 \(at least 0\.99\)"),
    "not finite": (np.nan, r"cosine -1\.0000"),
}


@pytest.mark.parametrize("change", DAMAGE)
def test_export_refuses_with_the_numbers_and_writes_nothing(
    exported: Bundle, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    files = {name: (exported.path / name).read_bytes() for name in exported.sums}
    monkeypatch.setattr(export_module, "encoder_graph", lambda *_: files["encoder.onnx"])
    small = {name: files[name] for name in ("heads/sequence.onnx", "heads/lesion.onnx", "scope.onnx")}
    monkeypatch.setattr(export_module, "small_graphs", lambda *_, half_text: small)
    known = as_fp32_answers(exported, series(20, 2))
    factor, message = DAMAGE[change]
    output = "patch" if change == "patch" else "embedding"
    engine = type(load_engine("onnxruntime", exported.file("encoder.onnx"), precision="fp32"))
    run, judging = engine.run, []

    def damaged(self, inputs):
        outputs = run(self, inputs)
        if self.precision == "int8" and judging:  # only the judge sees it: the golden case is right
            outputs[output] = outputs[output] * np.float32(factor)
        return outputs

    def judged() -> Iterator[KnownSeries]:
        judging.append(True)
        yield from known

    monkeypatch.setattr(engine, "run", damaged)
    with pytest.raises(EngineError, match=message) as caught:
        export_bundle(weights, golden(), tmp_path / "bundle", fp16=False, int8=[], judge=Judge(judged))
    assert "int8 encoder" in str(caught.value)
    assert not (tmp_path / "bundle").exists()
