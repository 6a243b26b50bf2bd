"""Which plan and which card a session on a played GPU takes, and what gives way where one of them fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from decipher_rt.bundle import Bundle
from decipher_rt.engines import tensorrt
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.manifest import EngineFile
from decipher_rt.preprocess import run
from decipher_rt.session import Session
from decipher_rt.verify import TOLERANCES, tolerance_of, verify_bundle

from .played_session import BUCKETS, FP16_COSINE, Machine, PlayedDali, ball, with_plans


def test_an_engine_that_is_wrong_on_the_golden_case_gives_way_to_fp32(
    machine: Machine, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preprocessing stays on the card; the encoder on the CPU then asks for the grid."""
    run_engine = tensorrt.TensorRtEngine.run
    monkeypatch.setattr(
        tensorrt.TensorRtEngine, "run", lambda self, inputs: {k: -v for k, v in run_engine(self, inputs).items()}
    )
    session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
    PlayedDali.copies = 0
    result = session.infer_volume(ball())
    assert (result.engine["name"], result.engine["precision"]) == ("onnxruntime", "fp32")
    assert result.engine["fallback"].startswith("tensorrt-rtx fp16 was asked for: on the golden case ")
    assert PlayedDali.copies == 1
    expected = Session(machine.bundle, threads=1).infer_volume(ball())
    np.testing.assert_allclose(result.embedding, expected.embedding, atol=1e-4)  # type: ignore[arg-type]


def test_tissue_that_the_card_counts_otherwise_gives_way_to_the_cpu(
    machine: Machine, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden case's tokens are given, so that its answers alone would be right."""
    count = tensorrt.TensorRtEngine.tissue_counts

    def one_more_in_a_patch(self: Any, volume: Any, threshold: Any) -> Any:
        counts = count(self, volume, threshold)
        counts[7] += 1
        return counts

    monkeypatch.setattr(tensorrt.TensorRtEngine, "tissue_counts", one_more_in_a_patch)
    session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
    assert session.encoder.name == "onnxruntime"
    said = "tensorrt-rtx fp16 was asked for: on the golden case tissue_counts differs by 1, the bundle allows 0"
    assert session.fallback == said
    report = verify_bundle(machine.bundle, "tensorrt-rtx", "fp16", 1)
    assert [row.output for row in report.rows if not row.passed] == ["tissue_counts"]


def test_tensorrt_has_a_plan_a_bucket_and_names_the_one_that_ran(
    machine: Machine, tmp_path: Path, play_library: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime configurations know no cache, which is no reason to fail."""
    library = play_library(machine.driver, rtx=False)
    monkeypatch.setattr(tensorrt, "require_library", lambda flavour: library)
    built = {"architectures": "sm_89", "tensorrt": "10.13.0"}
    plans = [
        EngineFile("tensorrt-sm_89", "fp16", f"engines/{tokens}.plan", built | {"tokens": str(tokens)})
        for tokens in machine.bundle.manifest.preprocessing.token_buckets
    ]
    bundle = with_plans(machine, tmp_path / "bundle", *plans)
    session = Session(bundle, engine="tensorrt", precision="fp16", threads=1)
    assert session.fallback is None
    used = set()
    for extent_mm in (30, 60, 110):
        result = session.infer_volume(ball(extent_mm=extent_mm))
        assert result.engine["sha256"] == bundle.sums[f"engines/{result.tokens['kept']}.plan"]
        used.add(result.tokens["kept"])
    assert len(used) > 1


@pytest.fixture(scope="module")
def brain(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A plan in bfloat16 that was not run at its export: the manifest states nothing for it."""
    built = {"architectures": "sm_89", "tokens": " ".join(map(str, BUCKETS))}
    plan = EngineFile("tensorrt-rtx", "bf16", "engines/bf16.plan", built)
    return with_plans(machine, tmp_path_factory.mktemp("brain") / "bundle", plan)


@pytest.mark.parametrize(("beyond", "passed"), [(0.0, True), (0.3, True), (0.5, False)])
def test_a_plan_that_was_not_run_at_its_export_is_held_to_its_precision(
    brain: Bundle, monkeypatch: pytest.MonkeyPatch, beyond: float, passed: bool
) -> None:
    run_engine = tensorrt.TensorRtEngine.run
    monkeypatch.setattr(
        tensorrt.TensorRtEngine,
        "run",
        lambda self, inputs: {k: v + beyond * (k == "patch") for k, v in run_engine(self, inputs).items()},
    )
    report = verify_bundle(brain, "tensorrt-rtx", "bf16", 1)
    (patch,) = (row for row in report.rows if row.output == "patch")
    assert patch.tolerance == TOLERANCES["bf16"] == 0.4
    assert patch.passed is passed
    if beyond:
        return
    assert report.passed


def test_a_tolerance_is_the_most_particular_that_is_stated(machine: Machine) -> None:
    manifest = machine.bundle.manifest
    plan = EngineFile("tensorrt-sm_89", "bf16", "a.plan")
    beside = replace(plan, built_with={"tolerance": "0.3"})
    assert tolerance_of(manifest, plan) == TOLERANCES["bf16"]
    assert tolerance_of(manifest, beside) == 0.3
    run = replace(manifest.numerics[0], target=plan.target, precision="bf16", tolerance=0.2)
    assert tolerance_of(replace(manifest, numerics=(*manifest.numerics, run)), beside) == 0.2
    for wrong in ("much", "nan", "inf", "0", "-1"):
        with pytest.raises(BundleError, match=rf"a\.plan states tolerance '{wrong}', expected a positive number"):
            tolerance_of(manifest, replace(plan, built_with={"tolerance": wrong}))


def test_such_a_plan_gives_way_where_it_differs_by_more(brain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run_engine = tensorrt.TensorRtEngine.run
    monkeypatch.setattr(
        tensorrt.TensorRtEngine,
        "run",
        lambda self, inputs: {k: v + 0.5 * (k == "patch") for k, v in run_engine(self, inputs).items()},
    )
    session = Session(brain, engine="tensorrt-rtx", precision="bf16", threads=1)
    assert session.encoder.precision == "fp32"
    assert session.fallback is not None
    assert re.search(r"on the golden case patch differs by 0\.\d+, the bundle allows 0\.4$", session.fallback)


class RefusingDali(PlayedDali):
    """DALI without its GPU part."""

    def __init__(self, graph: bytes, *, batch: int, threads: int, device_id: int | None = None) -> None:
        if device_id is not None:
            raise EngineError("DALI: CUDA allocation failed (daliPipelineBuild)")
        super().__init__(graph, batch=batch, threads=threads)


def test_auto_preprocesses_on_the_cpu_where_the_card_refuses(
    machine: Machine, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1).infer_volume(ball())
    monkeypatch.setattr(run, "DaliGraph", RefusingDali)
    found = Session(machine.bundle, engine="auto", precision="fp16", threads=1)
    result = found.infer_volume(ball())
    assert (result.engine["name"], found.preprocessor.device) == ("tensorrt-rtx", "cpu")
    assert result.engine["fallback"].endswith(
        "; preprocessing on the GPU: DALI: CUDA allocation failed (daliPipelineBuild); it runs on the CPU"
    )
    assert result.tokens == expected.tokens
    assert result.embedding @ expected.embedding > FP16_COSINE  # type: ignore[operator]  # slabs round otherwise


class ShiftedDali(PlayedDali):
    """A GPU whose grids lie off by a tenth of an acquired voxel."""

    def _execute(self, inputs: Mapping[str, Sequence[NDArray[Any]]]) -> None:
        if self._played:
            shift = np.array([0.1, 0, 0], np.float32)
            inputs = {**inputs, **{end: [place + shift for place in inputs[end]] for end in ("roi_start", "roi_end")}}
        super()._execute(inputs)


def test_a_grid_that_the_card_makes_otherwise_is_the_cpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DaliGraph", ShiftedDali)
    said = r"DALI's grid on the GPU differs from the CPU's by 0\.\d+ of the window, allowed 0\.01"
    with pytest.raises(EngineError, match=said):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
    found = Session(machine.bundle, engine="auto", precision="fp16", threads=1)
    assert (found.encoder.name, found.preprocessor.device) == ("tensorrt-rtx", "cpu")
    assert re.search(rf"preprocessing on the GPU: {said}; it runs on the CPU$", str(found.fallback))


def test_an_engine_asked_for_by_name_does_not_hide_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DaliGraph", RefusingDali)
    with pytest.raises(EngineError, match="CUDA allocation failed"):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)


def test_a_card_that_fails_the_golden_case_gives_way_with_auto_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise EngineError("CUDA: cuGraphLaunch gives CUDA_ERROR_LAUNCH_FAILED")

    monkeypatch.setattr(tensorrt.TensorRtEngine, "run", fail)
    found = Session(machine.bundle, engine="auto", precision="fp16", threads=1)
    assert (found.encoder.name, found.encoder.precision) == ("onnxruntime", "fp32")
    assert found.fallback is not None
    passed_over, tried = found.fallback.split("; tensorrt-rtx fp16 was tried: ")
    assert passed_over.startswith("tensorrt: bundle ")
    assert tried == "on the golden case it fails: CUDA: cuGraphLaunch gives CUDA_ERROR_LAUNCH_FAILED"
    with pytest.raises(EngineError, match="CUDA_ERROR_LAUNCH_FAILED"):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)


def test_bindings_of_another_api_say_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> Any:
        raise AttributeError("'IRuntimeConfig' object has no attribute 'create_runtime_cache'")

    monkeypatch.setattr(tensorrt.TensorRtEngine, "_context", lacking)
    said = r"tensorrt-rtx 1\.7\.1 does not work as this runtime expects \('IRuntimeConfig' object has no attribute"
    with pytest.raises(EngineError, match=said):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)


def test_auto_takes_the_card_and_says_what_it_passed_over(machine: Machine) -> None:
    result = Session(machine.bundle, engine="auto", precision="fp16", threads=1).infer_volume(ball())
    assert (result.engine["name"], result.engine["device"]) == ("tensorrt-rtx", "cuda:0 Fake RTX")
    assert result.engine["fallback"].startswith("tensorrt: bundle ")  # it has no plan of that flavour
    assert "onnxruntime" not in result.engine["fallback"]


ADA = {"name": "Fake Ada", "uuid": "3f0cd1e7-0a44-4f0e-8f52-6c1e9b2ad377"}
OTHERS = ({"name": "Fake Turing", "architecture": 75}, {"name": "Fake Ada, the other"})


@pytest.fixture(params=OTHERS, ids=["one of another kind", "one of the same kind"])
def second(
    request: pytest.FixtureRequest,
    machine: Machine,
    play_gpu: Callable[..., Any],
    play_library: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """A machine whose second card is the one that is asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    driver = play_gpu(machine.bundle.path / "kernels", monkeypatch, (request.param, ADA))
    libraries = {flavour: play_library(driver, rtx=flavour == "tensorrt-rtx") for flavour in tensorrt.LIBRARIES}
    monkeypatch.setattr(tensorrt, "require_library", libraries.__getitem__)
    PlayedDali.made.clear()
    return driver


def plan_of(machine: Machine, folder: Path) -> Bundle:
    built = {"architectures": "sm_89", "tensorrt": "10.13.0", "tokens": " ".join(map(str, BUCKETS))}
    return with_plans(machine, folder, EngineFile("tensorrt-sm_89", "fp16", "engines/one.plan", built))


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("engine", ["by name", "auto"])
def test_all_of_a_session_is_on_the_card_that_was_asked_for(
    machine: Machine, second: Any, flavour: str, engine: str, tmp_path: Path
) -> None:
    """DALI, the kernels, the library and the driver's own objects: the played ones refuse what is of another card."""
    bundle = plan_of(machine, tmp_path / "bundle") if flavour == "tensorrt" else machine.bundle
    name = flavour if engine == "by name" else "auto"
    session = Session(bundle, engine=name, precision="fp16", threads=1, device="GPU-3f0cd1")
    result = session.infer_volume(ball())
    assert (result.engine["name"], result.engine["device"]) == (flavour, "cuda:1 Fake Ada")
    assert result.engine["precision"] == "fp16"  # the golden case was right on it
    assert session.preprocessor.device == "gpu"
    assert set(PlayedDali.made) - {None} == {1}
    assert second.used == {1}
    assert second.done.count("tissue_counts") > 0
    expected = Session(machine.bundle, threads=1).infer_volume(ball())
    assert result.embedding @ expected.embedding > FP16_COSINE  # type: ignore[operator]
    del session
    assert second.retained == 0
    assert second.strays == []


def test_slices_that_arrive_run_on_that_card_too(machine: Machine, second: Any) -> None:
    session, volume = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1, device=1), ball()
    stream = session.stream(volume.voxels.shape, np.uint16, volume.affine_lps_mm, volume.series)  # type: ignore[arg-type]
    for index, pixels in enumerate(volume.voxels):
        stream.push(pixels, volume.affine_lps_mm[:3, 3] + index * volume.affine_lps_mm[:3, 0])
    assert stream.finish().engine["device"] == "cuda:1 Fake Ada"
    assert second.used == {1}
    assert set(PlayedDali.made) - {None} == {1}


def test_the_golden_case_is_verified_on_that_card(machine: Machine, second: Any) -> None:
    report = verify_bundle(machine.bundle, "tensorrt-rtx", "fp16", 1, "1")
    assert (report.device, report.passed) == ("cuda:1 Fake Ada", True)
    assert second.used == {1}


def test_the_first_card_is_used_where_none_is_asked_for(machine: Machine, second: Any) -> None:
    """It has no plan where it is of another kind, whatever the second could run."""
    kind = second.cards[0].architecture
    if kind == 89:
        session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
        assert session.encoder.device == "cuda:0 Fake Ada, the other"
        assert (second.used, set(PlayedDali.made) - {None}) == ({0}, {0})
    else:
        with pytest.raises(EngineError, match=r"fp16 tensorrt-rtx engines for sm_89, this card is sm_75"):
            Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
        assert second.used == set()


def test_what_one_card_compiled_is_no_other_cards(
    machine: Machine, second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    find = tensorrt.cache_file
    monkeypatch.setattr(tensorrt, "cache_file", lambda *key: keys.append(key) or find(*key))
    cards = (1, 1) if second.cards[0].architecture == 75 else (0, 1, 0, 1)
    compiled = []
    for card in cards:
        session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1, device=card)
        compiled.append(session.encoder.compiled)  # type: ignore[attr-defined]
    assert compiled == [index < len(set(cards)) for index in range(len(cards))]
    assert [card for *_, card in keys] == [f"{second.cards[card].name} sm_89" for card in cards]
