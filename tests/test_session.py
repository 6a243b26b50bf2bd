"""The stages in order: results follow the schema, times sum, one failure does not stop the others."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import decipher_rt
import decipher_rt.session
from decipher_rt.errors import BundleError, EngineError, SeriesError
from decipher_rt.result import Failure, Result
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

# The issue of the numbers: what falls between two stages may be at most this share of the total.
TIMES_SUM_TOLERANCE = 0.02


def schema(name: str) -> jsonschema.Draft202012Validator:
    document = json.loads((files("decipher_rt") / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.fixture(scope="module")
def session():
    return decipher_rt.load()


@pytest.fixture
def ball() -> Volume:
    """A bright ball of 80 mm in noise: an image, though no head."""
    rng = np.random.default_rng(0)
    d, h, w = np.indices((40, 64, 64)) - np.array([20, 32, 32]).reshape(3, 1, 1, 1)
    voxels = rng.integers(0, 30, (40, 64, 64)) + 800 * ((4 * d) ** 2 + (3 * h) ** 2 + (3 * w) ** 2 < 80**2)
    affine = np.array([[0, 0, 3, -96], [0, 3, 0, -96], [4, 0, 0, -80], [0, 0, 0, 1.0]])
    series = SeriesInfo("1.2.3", Path("ball"), files=40, acquisition=Acquisition(modality="MR"))
    return Volume(voxels.astype(np.int16), affine, series)


def test_a_volume_in_memory_gives_a_result_of_the_schema(session, ball):
    result = session.infer_volume(ball)
    schema("result-1").validate(result.to_json())
    assert np.linalg.norm(result.embedding) == pytest.approx(1, abs=1e-4)
    assert set(result.heads) == {head.name for head in session.bundle.manifest.heads}


def test_only_the_heads_that_were_asked_for_are_loaded_and_answer(session, ball, monkeypatch):
    loaded = []
    load_engine = decipher_rt.session.load_engine
    for module in (decipher_rt.session, decipher_rt.head_graphs):
        monkeypatch.setattr(module, "load_engine", lambda *a, **k: loaded.append(a[1].name) or load_engine(*a, **k))
    some = decipher_rt.load(heads=["tissue", "sequence"])
    assert loaded == ["sequence.onnx", "tissue.onnx", "scope.onnx"]
    result, whole = some.infer_volume(ball), session.infer_volume(ball)
    assert list(result.heads) == ["sequence", "tissue"]  # in the bundle's order
    assert result.scope == whole.scope
    assert np.array_equal(result.embedding, whole.embedding)
    assert result.bundle == whole.bundle
    schema("result-1").validate(result.to_json())


def test_without_heads_there_is_the_embedding(ball):
    result = decipher_rt.load(heads=[]).infer_volume(ball)
    assert result.heads == {}
    assert result.scope.score is not None
    schema("result-1").validate(result.to_json())


def test_a_head_that_the_bundle_lacks_is_named_beside_those_it_has():
    with pytest.raises(BundleError, match="no head 'sequense'; it has sequence, tissue"):
        decipher_rt.load(heads=["sequense"])


def test_the_same_volume_gives_the_same_answer(session, ball):
    first, second = session.infer_volume(ball), session.infer_volume(ball)
    assert np.array_equal(first.embedding, second.embedding)


def test_the_rescaled_values_do_not_matter(session, ball):
    """Windowing makes the encoder blind to gain and offset: as uint16 with an offset the answer is the same."""
    shifted = replace(ball, voxels=(ball.voxels.astype(np.int32) + 1000).astype(np.uint16))
    first, second = session.infer_volume(ball), session.infer_volume(shifted)
    assert float(first.embedding @ second.embedding) > 0.99999


def test_the_times_of_the_stages_sum_to_the_total(session, ball):
    for _ in range(5):
        times = session.infer_volume(ball).timings_ms
        parts = sum(ms for stage, ms in times.items() if stage != "total")
        assert parts == pytest.approx(times["total"], rel=TIMES_SUM_TOLERANCE)


def test_another_modality_is_out_of_scope_and_no_head_answers(session, ball):
    ct = replace(ball, series=replace(ball.series, acquisition=Acquisition(modality="CT")))
    result = session.infer_volume(ct)
    assert not result.scope.inside
    assert "CT" in result.scope.reason
    assert all(answer.not_answered for answer in result.heads.values())
    schema("result-1").validate(result.to_json())


def test_a_series_that_fails_does_not_stop_the_others(session, tmp_path, write_series):
    good = write_series(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    outcomes = list(session.infer_each([tmp_path / "empty", good, tmp_path / "absent"]))
    assert [type(o) for o in outcomes] == [Failure, Result, Failure]
    for outcome in (outcomes[0], outcomes[2]):
        schema("failure-1").validate(outcome.to_json())


def test_infer_wants_one_series(session, tmp_path, write_series):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    with pytest.raises(SeriesError, match="2 series"):
        session.infer(tmp_path)
    assert session.infer(tmp_path / "a").series["files"] > 1


def test_a_precision_that_the_bundle_lacks_is_named():
    with pytest.raises(BundleError, match="no bf16 encoder"):
        decipher_rt.load(precision="bf16")


def test_an_embedding_that_is_not_finite_is_an_error(session, ball, monkeypatch):
    honest = session.encoder.run

    def run(arrays):
        outputs = dict(honest(arrays))
        return outputs | {"embedding": outputs["embedding"] * np.float32("nan")}

    monkeypatch.setattr(session.encoder, "run", run)
    with pytest.raises(EngineError, match="an embedding that is not finite"):
        session.infer_volume(ball)


def test_an_embedding_that_is_no_unit_vector_is_an_error(session, ball, monkeypatch):
    honest = session.encoder.run
    monkeypatch.setattr(
        session.encoder, "run", lambda a: {n: x * 3 if n == "embedding" else x for n, x in honest(a).items()}
    )
    with pytest.raises(BundleError, match="no unit vector"):
        session.infer_volume(ball)


@pytest.mark.parametrize("said", ["", "MR ", " MR\0"])
def test_blanks_around_what_a_header_says_say_nothing(session, ball, said):
    volume = replace(ball, series=replace(ball.series, acquisition=Acquisition(modality=said, body_part="BRAIN ")))
    assert session.infer_volume(volume).scope.score is not None


def test_a_transposed_affine_and_a_slope_that_turns_the_contrast_are_refused(session, ball):
    for changed, expected in (
        (replace(ball, affine_lps_mm=ball.affine_lps_mm.T), "is it transposed"),
        (replace(ball, affine_lps_mm=ball.affine_lps_mm[:3]), "must be 4 x 4"),
        (replace(ball, slope=-1.0), "the slope above 0"),
        (replace(ball, slope=float("nan")), "the slope above 0"),
    ):
        with pytest.raises(SeriesError, match=expected):
            session.infer_volume(changed)


def test_one_prompt_and_one_head_need_no_list():
    session = decipher_rt.load(prompts="T1-weighted image", heads="sequence")
    assert [head.name for head in session.bundle.manifest.heads] == ["sequence"]
    assert session._prompts.texts == ("T1-weighted image",)


def test_more_threads_than_a_machine_survives_are_refused():
    with pytest.raises(EngineError, match="threads is 100000, expected 1 to 1024"):
        decipher_rt.load(threads=100_000)


def test_both_engines_agree(ball):
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    results = [decipher_rt.load(engine=engine).infer_volume(ball) for engine in ("onnxruntime", "openvino")]
    assert float(results[0].embedding @ results[1].embedding) > 0.9999
    assert results[1].engine["name"] == "openvino"


def test_the_threads_asked_for_are_the_threads_reported(ball):
    assert decipher_rt.load(threads=1).infer_volume(ball).engine["threads"] == 1


def test_the_golden_case_runs_once_on_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[str] = []
    fault = decipher_rt.session.golden_fault
    monkeypatch.setattr(decipher_rt.session, "golden_fault", lambda *a: asked.append("golden") or fault(*a))
    for _ in range(2):
        assert decipher_rt.load(precision="fp16", threads=1).fallback is None
    assert asked == ["golden"]


def test_a_failed_golden_case_is_never_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decipher_rt.session, "golden_fault", lambda *a: "wrong here")
    for _ in range(2):
        assert "wrong here" in decipher_rt.load(precision="fp16", threads=1).fallback
